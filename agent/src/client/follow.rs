//! One client for the life of the process, though the API server's address may change under it.

use std::time::Duration;

use hyper::{Request, Response};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tower::service_fn;

use super::{Error, Found, Options, find};

/// How often the files are looked at again.
const LOOK: Duration = Duration::from_secs(10);

/// What makes two configurations different servers.
type Identity = (hyper::Uri, Option<Vec<Vec<u8>>>, Option<std::path::PathBuf>);

fn identity(config: &Config) -> Identity {
    (
        config.cluster_url.clone(),
        config.root_cert.clone(),
        config.root_cert_file.clone(),
    )
}

fn build(found: &Found) -> Result<Client, Error> {
    let server = found.config.cluster_url.to_string();
    ClientBuilder::try_from(found.config.clone())
        .map(ClientBuilder::build)
        .map_err(|source| Error::Build {
            origin: found.origin.clone(),
            server,
            source: Box::new(source),
        })
}

/// A client that hands each request to the client of the server found last. A watch that runs keeps its
/// connection until it ends, and is resumed at the new server.
pub(super) fn client(options: Options, found: Found) -> Result<Client, Error> {
    let (current, latest) = watch::channel(build(&found)?);
    tokio::spawn(look_again(options, identity(&found.config), current));
    let service = service_fn(move |request: Request<Body>| {
        let client = latest.borrow().clone();
        async move { client.send(request).await as Result<Response<Body>, kube::Error> }
    });
    Ok(Client::new(service, found.config.default_namespace))
}

async fn look_again(options: Options, mut known: Identity, current: watch::Sender<Client>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = current.closed() => return,
            _ = ticks.tick() => (),
        }
        // A file that is being replaced may be unreadable for a moment: keep what works.
        let Ok(found) = find(&options) else { continue };
        let now = identity(&found.config);
        if now == known {
            continue;
        }
        match build(&found) {
            Ok(client) => {
                tracing::info!(server = %found.config.cluster_url, origin = %found.origin, "API server moved");
                current.send_replace(client);
                known = now;
            }
            Err(error) => {
                tracing::warn!(%error, "the API server's new address cannot be used; keeping the old one")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Reply};
    use std::{io::Write, path::Path};
    use tokio_util::sync::CancellationToken;

    async fn server(name: &'static str, stop: &CancellationToken) -> std::net::SocketAddr {
        let listener = http::bind("--test", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let addr = listener.local_addr();
        tokio::spawn(listener.serve(move |_path: &str| Reply::text(200, name), stop.clone()));
        addr
    }

    fn kubelet_conf(path: &Path, server: std::net::SocketAddr) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'http://{server}'}}}}]\n"
        );
        std::fs::File::create(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    #[tokio::test]
    async fn requests_go_to_the_new_server_after_the_kubelets_file_changed() {
        let stop = CancellationToken::new();
        let (one, two) = (server("one", &stop).await, server("two", &stop).await);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubelet.conf");
        kubelet_conf(&path, one);
        let options = Options {
            kubelet_kubeconfigs: vec![path.clone()],
            in_cluster: None,
            ..Options::new("test/1")
        };
        let client = client(options.clone(), find(&options).unwrap()).unwrap();
        let ask = || async {
            client
                .request_text(Request::get("/version").body(vec![]).unwrap())
                .await
                .unwrap()
        };
        assert_eq!(ask().await, "one");
        kubelet_conf(&path, two);
        // Real sockets and a paused clock do not mix: the clock stops only now, so that the next look is at once.
        tokio::time::pause();
        tokio::time::advance(LOOK).await;
        tokio::time::resume();
        tokio::time::timeout(LOOK, async {
            while ask().await != "two" {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the new server is asked");
        stop.cancel();
    }
}
