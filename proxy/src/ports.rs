//! The daemon's two HTTP ports: had at once, or as soon as whoever has them lets go.

use std::net::SocketAddr;
use std::time::Duration;

use agent::http::{self, BindError, Handler, Listener};
use tokio::runtime;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

/// How often a port that is taken is tried again: a kube-proxy that is being replaced still has it.
const AGAIN: Duration = Duration::from_secs(5);

/// A port that answers are wanted on.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The flag that chose it, for messages.
    pub flag: &'static str,
    /// Where to listen; `None`: nowhere.
    pub address: Option<SocketAddr>,
    /// That it cannot be had is an error, not a reason to try again.
    pub hard_fail: bool,
}

impl Port {
    /// Serves answers in the background until `stop` is cancelled. `refused` is told if the port is taken at first.
    ///
    /// # Errors
    /// The port cannot be had, and that shall be an error.
    pub async fn serve(
        self,
        handler: impl Handler,
        refused: impl FnOnce(&BindError),
        stop: CancellationToken,
    ) -> Result<(), BindError> {
        let Some(address) = self.address else {
            return Ok(());
        };
        match http::bind(self.flag, address).await {
            Ok(listener) => {
                tokio::spawn(listener.serve(handler, stop));
            }
            Err(error) if self.hard_fail => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "will try again until the port is free");
                refused(&error);
                tokio::spawn(async move {
                    if let Some(listener) = self.bind_again(address, AGAIN, &stop).await {
                        tracing::info!(flag = self.flag, %address, "the port is ours now");
                        listener.serve(handler, stop).await;
                    }
                });
            }
        }
        Ok(())
    }

    /// As [`Port::serve`], in another runtime than the caller's.
    ///
    /// # Errors
    /// As [`Port::serve`].
    pub async fn serve_in(
        self,
        runtime: &runtime::Handle,
        handler: impl Handler,
        refused: impl FnOnce(&BindError) + Send + 'static,
        stop: CancellationToken,
    ) -> Result<(), BindError> {
        let served = runtime.spawn(self.serve(handler, refused, stop)).await;
        served.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// `None`: stopped before it could be had.
    async fn bind_again(
        self,
        address: SocketAddr,
        every: Duration,
        stop: &CancellationToken,
    ) -> Option<Listener> {
        let mut again = interval(every);
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = again.tick() => {}
            }
            if let Ok(listener) = http::bind(self.flag, address).await {
                return Some(listener);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use agent::http::Reply;

    use super::*;

    fn port(address: SocketAddr, hard_fail: bool) -> Port {
        Port {
            flag: "--metrics-bind-address",
            address: Some(address),
            hard_fail,
        }
    }

    async fn taken() -> Listener {
        http::bind("--other", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_where_it_shall_be() {
        let other = taken().await;
        let address = other.local_addr();
        let answer = |_: &str| Reply::text(200, "ok");
        let stop = CancellationToken::new();
        let (mut errors, mut told) = (Vec::new(), Vec::new());
        let error = port(address, true)
            .serve(answer, |error| errors.push(error.to_string()), stop.clone())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--metrics-bind-address") && error.contains(&address.to_string()),
            "{error}"
        );
        port(address, false)
            .serve(answer, |error| told.push(error.to_string()), stop.clone())
            .await
            .unwrap();
        assert_eq!((errors, told), (vec![], vec![error]));
        stop.cancel();
    }

    #[tokio::test]
    async fn a_taken_port_is_had_once_it_is_free() {
        let other = taken().await;
        let address = other.local_addr();
        let stop = CancellationToken::new();
        let again = port(address, false).bind_again(address, Duration::from_millis(5), &stop);
        let (listener, ()) = tokio::join!(again, async { drop(other) });
        assert_eq!(listener.unwrap().local_addr(), address);
        let other = http::bind("--other", address).await;
        assert!(other.is_ok(), "the listener above is gone again");
        stop.cancel();
        let again = port(address, false).bind_again(address, Duration::from_millis(5), &stop);
        assert!(again.await.is_none(), "stopped while the port was taken");
    }
}
