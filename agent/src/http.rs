//! The small HTTP server of a daemon: health on one port, metrics on another, a few answers each.

use std::{convert::Infallible, future, io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Connections served at one time; more wait. Probes and scrapes are few: this bounds what a stranger can cost.
const CONNECTIONS: usize = 64;
/// A client that has not sent its request by then is hung up on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after a failed accept, so that a process without free descriptors does not spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// The `Content-Type`.
    pub content_type: &'static str,
    /// Further headers; names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The content.
    pub body: String,
}

impl Reply {
    /// Plain text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// A JSON document.
    #[must_use]
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "application/json",
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// The answer for a path that nobody knows.
    #[must_use]
    pub fn not_found() -> Self {
        Self::text(404, "not found\n")
    }
}

/// Answers GET (and HEAD) requests. The text is path and query, e.g. `/healthz?verbose`.
pub trait Handler: Fn(&str) -> Reply + Send + Sync + 'static {}
impl<F: Fn(&str) -> Reply + Send + Sync + 'static> Handler for F {}

/// The same, for answers that take their time.
pub trait SlowHandler<F>: Fn(&str) -> F + Send + Sync + 'static {}
impl<F, T: Fn(&str) -> F + Send + Sync + 'static> SlowHandler<F> for T {}

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "{flag}: cannot listen on {addr}: {source}; stop what uses the port, or choose another with {flag}"
)]
pub struct BindError {
    flag: &'static str,
    addr: SocketAddr,
    source: io::Error,
}

/// A port that is ours, not served yet.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    addr: SocketAddr,
}

/// Takes the port. `flag` is the flag that chose it, named in the error.
///
/// # Errors
/// The port is taken, or the address is not this machine's.
pub async fn bind(flag: &'static str, addr: SocketAddr) -> Result<Listener, BindError> {
    let error = |source| BindError { flag, addr, source };
    let listener = TcpListener::bind(addr).await.map_err(error)?;
    let addr = listener.local_addr().map_err(error)?;
    Ok(Listener { listener, addr })
}

impl Listener {
    /// The address that was bound, with the port that the kernel chose if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop` is cancelled; connections that are open then are dropped.
    pub async fn serve(self, handler: impl Handler, stop: CancellationToken) {
        let at_once = move |target: &str| future::ready(handler(target));
        self.serve_slow(at_once, stop).await;
    }

    /// [`Listener::serve`], with answers that are waited for.
    pub async fn serve_slow<F>(self, handler: impl SlowHandler<F>, stop: CancellationToken)
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let accept = async {
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                // What can fail here (a client that hung up, no descriptors left) passes.
                let Ok((stream, _)) = self.listener.accept().await else {
                    sleep_until(Instant::now() + ACCEPT_AGAIN).await;
                    continue;
                };
                let (handler, stop) = (Arc::clone(&handler), stop.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request| {
                        let handler = Arc::clone(&handler);
                        async move { Ok::<_, Infallible>(respond(&*handler, &request).await) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), answer);
                    tokio::select! {
                        _ = connection => (),
                        () = stop.cancelled() => (),
                    }
                    drop(permit);
                });
            }
        };
        tokio::select! {
            () = accept => (),
            () = stop.cancelled() => (),
        }
    }
}

async fn respond<F: Future<Output = Reply>>(
    handler: &impl SlowHandler<F>,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let reply = match *request.method() {
        Method::GET | Method::HEAD => handler(target).await,
        _ => Reply::text(405, "only GET\n"),
    };
    let mut response = Response::new(Full::from(reply.body));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    async fn ask(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(
                format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_carry_status_headers_and_body() {
        let stop = CancellationToken::new();
        let listener = bind("--test", ([127, 0, 0, 1], 0).into()).await.unwrap();
        let addr = listener.local_addr();
        let served = tokio::spawn(listener.serve(
            |target: &str| match target {
                "/healthz" => Reply {
                    headers: vec![("x-weight", "2".into())],
                    ..Reply::json(503, "{}")
                },
                _ => Reply::not_found(),
            },
            stop.clone(),
        ));
        let answer = ask(addr, "GET /healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.contains("content-type: application/json\r\n")
                && answer.contains("x-weight: 2\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n{}"), "{answer}");
        assert!(ask(addr, "GET /other").await.starts_with("HTTP/1.1 404 "));
        assert!(
            ask(addr, "POST /healthz")
                .await
                .starts_with("HTTP/1.1 405 ")
        );
        let head = ask(addr, "HEAD /healthz").await;
        assert!(
            head.starts_with("HTTP/1.1 503 ") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        stop.cancel();
        served.await.unwrap();
        assert!(
            TcpStream::connect(addr).await.is_err(),
            "the port is free again"
        );
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag() {
        let first = bind("--healthz-port", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let error = bind("--healthz-port", first.local_addr())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--healthz-port") && error.contains(&first.local_addr().to_string()),
            "{error}"
        );
    }
}
