//! From the file and the environment to the type.

use super::{ConfigErrors, CtlConfig, NodeConfig};
use super::{known, overlay, rest, tree, validate};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

impl NodeConfig {
    /// Reads a file, or a directory of `*.yml` and `*.yaml` (sorted, the last one wins), puts the environment's
    /// `PATRONI_*` and `TENURE_*` over it, and validates. All that is wrong is reported together. Reads files and blocks: call it before the runtime's work begins.
    pub fn load(path: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Result<NodeConfig, ConfigErrors> {
        let wrong = |line: String| ConfigErrors { file: path.to_owned(), unknown: Vec::new(), wrong: vec![line] };
        let mut root = tree::read(path).map_err(wrong)?;
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        overlay::apply(&mut root, &environment);
        NodeConfig::of(&root, &environment).map_err(|(unknown, wrong)| ConfigErrors { file: path.to_owned(), unknown, wrong })
    }

    pub(super) fn of(root: &Map<String, Value>, environment: &BTreeMap<String, String>) -> Result<NodeConfig, (Vec<String>, Vec<String>)> {
        let survey = known::survey(root);
        // Where something is missing, a key that nobody knows may be what was meant.
        let unheard: Vec<String> = survey.unheard().map(str::to_owned).collect();
        match validate::node(root, environment, survey.not_served) {
            Ok(config) if survey.unknown.is_empty() => Ok(config),
            Ok(_) => Err((survey.unknown, Vec::new())),
            Err(wrong) => Err((survey.unknown.into_iter().chain(unheard).collect(), wrong)),
        }
    }
}

/// The part of a file that says how members are asked. What is wrong in it counts as absent: the operator's
/// tool must work with half a file.
pub fn ctl_of(root: &Map<String, Value>) -> CtlConfig {
    let errors = RefCell::default();
    rest::ctl(&tree::At::root(root, "ctl", &errors), &tree::At::root(root, "restapi", &errors))
}
