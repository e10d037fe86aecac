//! docs/openapi.yaml describes every route and no other; what real nodes answer is compared in tests/tests/rest.rs.

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;

fn description() -> Value {
    serde_saphyr::from_str(include_str!("../../../docs/openapi.yaml")).unwrap()
}

fn described(root: &Value) -> BTreeSet<(String, String)> {
    let paths = root["paths"].as_object().unwrap();
    let method = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(method).collect()
}

#[test]
fn every_route_is_described_and_every_description_has_its_route() {
    let described = described(&description());
    for route in &ROUTES {
        assert!(described.contains(&(route.method.to_string(), route.path.to_owned())), "{} {}", route.method, route.path);
    }
    for (method, path) in &described {
        let route = find(&method.parse().unwrap(), path).unwrap_or_else(|| panic!("{method} {path} is described and not served"));
        if route.purpose == Purpose::Health {
            assert!(!health::is_unknown(path), "{path} is described as a health check, and nobody knows it");
        }
    }
}

#[test]
fn what_changes_something_is_described_as_asking_for_credentials() {
    let root = description();
    for (method, path) in described(&root) {
        let operation = &root["paths"][&path][method.to_lowercase()];
        let asks = operation["security"].as_array().is_some_and(|list| !list.is_empty());
        assert_eq!(asks, changes(&method.parse().unwrap()), "{method} {path}");
        for status in ["401", "403"] {
            assert_eq!(operation["responses"].get(status).is_some(), asks, "{method} {path}: {status}");
        }
    }
}
