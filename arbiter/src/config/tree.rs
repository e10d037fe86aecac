//! The file as a tree of values, and a cursor on it that knows its dotted key and notes what is wrong.

use crate::ground::secret::Secret;
use cluster::given::{seconds_of, yes_or_no};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Reads a file, or the `*.yml` and `*.yaml` of a directory in the order of their names, merged: the last one wins.
pub fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|error| format!("cannot be read: {error}"))?;
        let is_yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml");
        files = entries.flatten().map(|entry| entry.path()).filter(is_yaml).collect();
        files.sort();
        if files.is_empty() {
            return Err("the directory holds no *.yml or *.yaml file".to_owned());
        }
    }
    let mut root = Map::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        merge(&mut root, parse(&text).map_err(|error| format!("{} is not understood: {error}", file.display()))?);
    }
    Ok(root)
}

/// Parses one YAML text; an empty one is an empty map.
pub fn parse(text: &str) -> Result<Map<String, Value>, String> {
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(other) => Err(format!("expected a map of settings, found {}", described(&other))),
        Err(error) => Err(error.to_string().trim().to_owned()),
    }
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(value)) => merge(below, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// What a value is, for a sentence; texts and maps are not shown, as they may hold secrets.
pub fn described(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the truth value {value}"),
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

/// A truth value, or a word for one. Not a number: in a file that is more likely to be meant for another line.
pub fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => yes_or_no(text),
        _ => None,
    }
}

/// One place in the tree. A value of the wrong type is noted in `errors` and then treated as absent.
#[derive(Clone)]
pub struct At<'a> {
    /// The dotted key.
    pub key: String,
    /// What is there; null is nothing.
    pub value: Option<&'a Value>,
    errors: &'a RefCell<Vec<String>>,
}

impl<'a> At<'a> {
    /// The key `name` of the root.
    pub fn root(root: &'a Map<String, Value>, name: &str, errors: &'a RefCell<Vec<String>>) -> At<'a> {
        At { key: name.to_owned(), value: root.get(name).filter(|value| !value.is_null()), errors }
    }

    /// One step down. Below something that is no map there is nothing; that it is no map is noted by [`At::map`].
    pub fn at(&self, name: &str) -> At<'a> {
        let value = self.value.and_then(|value| value.get(name)).filter(|value| !value.is_null());
        At { key: format!("{}.{name}", self.key), value, errors: self.errors }
    }

    /// One of a list.
    pub fn item(&self, place: usize, value: &'a Value) -> At<'a> {
        At { key: format!("{}[{place}]", self.key), value: Some(value).filter(|value| !value.is_null()), errors: self.errors }
    }

    /// Notes a sentence about this key.
    pub fn note(&self, sentence: impl std::fmt::Display) {
        self.errors.borrow_mut().push(format!("{}: {sentence}", self.key));
    }

    fn wrong<T>(&self, value: &Value, expected: &str) -> Option<T> {
        self.note(format!("found {}, expected {expected}", described(value)));
        None
    }

    /// A text.
    pub fn text(&self) -> Option<String> {
        match self.value? {
            Value::String(text) => Some(text.clone()),
            value @ (Value::Number(_) | Value::Bool(_)) => self.wrong(value, "a text: put it in quotes"),
            value => self.wrong(value, "a text"),
        }
    }

    /// A password.
    pub fn secret(&self) -> Option<Secret> {
        self.text().map(Secret::new)
    }

    /// A path.
    pub fn path(&self) -> Option<PathBuf> {
        self.text().map(PathBuf::from)
    }

    /// A truth value.
    pub fn flag(&self) -> Option<bool> {
        let value = self.value?;
        truth(value).or_else(|| self.wrong(value, "true or false"))
    }

    /// A count of seconds.
    pub fn seconds(&self) -> Option<u64> {
        let value = self.value?;
        let number = value.as_u64().or_else(|| seconds_of(value.as_str()?.trim()));
        number.or_else(|| self.wrong(value, "a whole number of seconds"))
    }

    /// A map.
    pub fn map(&self) -> Option<&'a Map<String, Value>> {
        let value = self.value?;
        value.as_object().or_else(|| self.wrong(value, "a map"))
    }

    /// A list of texts.
    pub fn lines(&self) -> Option<Vec<String>> {
        let value = self.value?;
        let list = value.as_array().or_else(|| self.wrong(value, "a list of texts"))?;
        list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().or_else(|| {
            self.note("found something else than a text in the list, expected texts only");
            None
        })
    }

    /// What must be there.
    pub fn required<T>(&self, value: Option<T>) -> Option<T> {
        if value.is_none() && self.value.is_none() {
            self.note("is missing, and there is no default");
        }
        value
    }
}
