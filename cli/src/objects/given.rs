//! Objects that are at hand: of a dump, or a test's.

use kube::api::{ApiResource, DynamicObject};

use super::{Missing, Source};

/// These objects and no others.
#[derive(Clone, Debug, Default)]
pub struct Given(pub Vec<DynamicObject>);

impl Given {
    fn of<'a>(
        &'a self,
        kind: &'a ApiResource,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a DynamicObject> {
        self.0.iter().filter(move |object| {
            let types = object.types.as_ref();
            types.is_some_and(|t| t.kind == kind.kind && t.api_version == kind.api_version)
                && (namespace.is_none() || object.metadata.namespace.as_deref() == namespace)
        })
    }
}

impl Source for Given {
    fn get(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Missing> {
        let is_it = |object: &&DynamicObject| object.metadata.name.as_deref() == Some(name);
        Ok(self.of(kind, namespace).find(is_it).cloned())
    }

    fn list(
        &mut self,
        kind: &ApiResource,
        namespace: Option<&str>,
        label: Option<(&str, &str)>,
    ) -> Result<Vec<DynamicObject>, Missing> {
        let has = |object: &&DynamicObject| {
            label.is_none_or(|(key, value)| {
                let labels = object.metadata.labels.as_ref();
                labels
                    .and_then(|labels| labels.get(key))
                    .map(String::as_str)
                    == Some(value)
            })
        };
        Ok(self.of(kind, namespace).filter(has).cloned().collect())
    }
}
