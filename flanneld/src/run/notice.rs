//! What wakes the loop from outside the API: changes in the kernel, and of files.

use std::path::Path;

use hostnet::{dirwatch::DirWatch, netlink, nft};
use tokio::sync::mpsc;

use crate::{pods::Pods, reconcile::Reconciler};

/// Notice of changes in the kernel: links, addresses, routes and the like, and nftables.
pub(super) struct Events {
    links: mpsc::Receiver<Result<netlink::Event, netlink::Error>>,
    rules: mpsc::Receiver<Result<nft::Change, nft::Error>>,
}

impl Events {
    pub(super) fn open() -> anyhow::Result<Self> {
        let (mut links, mut rules) = (netlink::Monitor::open()?, nft::Monitor::open()?);
        Ok(Self {
            links: listen(
                "links",
                move || links.next(true),
                netlink::Error::is_overrun,
            )?,
            rules: listen(
                "rules",
                move || rules.next(true),
                |error| matches!(error, nft::Error::Overrun),
            )?,
        })
    }

    /// Waits for a change, and tells what is to be done about it. Cancel safe.
    pub(super) async fn next(&mut self, reconciler: &Reconciler, pods: Option<&mut Pods>) -> News {
        tokio::select! {
            Some(event) = self.links.recv() => match event {
                Ok(event) => {
                    let is_pods = pods.is_some_and(|pods| pods.hear(&event));
                    match (reconciler.is_news(&event), is_pods) {
                        (true, _) => News::Everything,
                        (false, true) => News::Pods,
                        (false, false) => News::Nothing,
                    }
                }
                Err(error) => lost(&error, pods),
            },
            Some(change) = self.rules.recv() => match change {
                Ok(change) => {
                    let is_pods = pods.is_some_and(|pods| pods.hear_rules(&change, reconciler.nft_port()));
                    let is_ours = reconciler.is_disturbing(&change);
                    if is_ours || is_pods {
                        let process = change.process.as_deref().unwrap_or("unknown");
                        tracing::warn!(process, pid = change.pid, "someone else changed our nftables rules");
                    }
                    if is_ours || reconciler.is_at_the_gate(&change) {
                        News::Everything
                    } else if is_pods {
                        News::Pods
                    } else {
                        News::Nothing
                    }
                }
                Err(error) => lost(&error, pods),
            },
            else => std::future::pending().await,
        }
    }
}

/// What a change in the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing.
    Nothing,
    /// A look at what pods rely on.
    Pods,
    /// A full pass.
    Everything,
    /// The same: events were lost.
    Lost,
}

/// What happened is not known (too much at once, or a socket that fails), so all has to be looked at.
fn lost(error: &(dyn std::error::Error + 'static), pods: Option<&mut Pods>) -> News {
    tracing::info!(
        error = agent::chain(error),
        "events were lost: looking at everything"
    );
    if let Some(pods) = pods {
        pods.doubt();
    }
    News::Lost
}

/// How many events wait to be read here. More than these the kernel keeps, until its buffer overruns, which it tells.
const WAITING: usize = 256;

/// Starts a thread that waits for the kernel. It ends with the process, or with an error that will not pass.
fn listen<T: Send + 'static, E: Send + 'static>(
    name: &str,
    mut next: impl FnMut() -> Result<Option<T>, E> + Send + 'static,
    passes: impl Fn(&E) -> bool + Send + 'static,
) -> std::io::Result<mpsc::Receiver<Result<T, E>>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let wait = move || {
        loop {
            let Some(event) = next().transpose() else {
                continue;
            };
            let last = event.as_ref().is_err_and(|error| !passes(error));
            if sender.blocking_send(event).is_err() || last {
                return;
            }
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(wait)?;
    Ok(receiver)
}

/// Notice of changes to the folders of files that we read and write. A machine that has no more watches to give costs
/// promptness, and nothing else: a full pass looks at the files, too.
pub(super) struct Files(Option<Watched>);

struct Watched {
    watch: DirWatch,
    changes: mpsc::Receiver<Result<(), std::io::Error>>,
}

impl Files {
    pub(super) fn open() -> anyhow::Result<Self> {
        let watch = match DirWatch::open() {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "changes of files are seen within a minute only: raise fs.inotify.max_user_instances"
                );
                return Ok(Self(None));
            }
        };
        let waiting = watch.clone();
        let changes = listen("files", move || waiting.wait().map(Some), |_| false)?;
        Ok(Self(Some(Watched { watch, changes })))
    }

    /// Watches the folder of a file. One that was deleted meanwhile is watched again.
    pub(super) fn watch_folder_of(&self, file: &Path) {
        if let Some(watched) = &self.0
            && let Some(folder) = file.parent()
            && let Err(error) = watched.watch.add(folder)
        {
            tracing::debug!(folder = %folder.display(), %error, "a folder cannot be watched");
        }
    }

    /// Waits for a change. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let Some(watched) = &mut self.0 else {
            return std::future::pending().await;
        };
        if watched.changes.recv().await.is_none() {
            std::future::pending().await
        }
        // One look serves all that has changed so far.
        while watched.changes.try_recv().is_ok() {}
    }
}
