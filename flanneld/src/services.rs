//! The ranges that Services get their addresses from, by ServiceCIDRs (Kubernetes 1.33). They only tell whether pods'
//! addresses are among them: a server that has none, and a role that may not ask, are no trouble.

use std::time::Duration;

use agent::sync::{Options, Pacer};
use hostnet::vocab::Subnet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::{Api, Client, api::ListParams};
use tokio::sync::watch;

/// Nobody changes them in a hurry, and who refuses once may do so for ever.
const PACE: Options = Options {
    min_interval: Duration::from_secs(1),
    full_every: Duration::from_secs(60 * 60),
    retry: Duration::from_secs(1),
    retry_max: Duration::from_secs(60 * 60),
};

/// Asks for them, for ever.
pub async fn follow(client: Client, ranges: watch::Sender<Vec<Subnet>>) {
    let api = Api::<ServiceCIDR>::all(client);
    let mut pacer = Pacer::new(PACE);
    loop {
        let pass = pacer.due().await;
        // From the server's cache.
        let list = api.list(&ListParams::default().match_any()).await;
        pacer.finished(pass, list.is_ok());
        match list {
            Ok(list) => {
                ranges.send_replace(list.items.iter().flat_map(subnets).collect());
            }
            Err(error) => {
                tracing::debug!(%error, "it is not known which addresses Services have");
            }
        }
    }
}

fn subnets(object: &ServiceCIDR) -> impl Iterator<Item = Subnet> {
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs
        .into_iter()
        .flatten()
        .filter_map(|cidr| cidr.parse().ok())
}
