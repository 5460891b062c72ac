//! A long conversation: numbered messages at a steady pace, each to be answered. What happens to
//! the network meanwhile shows as numbers without an answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hostnet::netns::NetNs;

use super::{Transport, client};

/// The pace: a message each 2 ms.
const PACE: Duration = Duration::from_millis(2);

/// How long answers may be late at the end.
const LATE: Duration = Duration::from_secs(5);

/// A conversation that goes on.
#[derive(Debug)]
pub struct Stream {
    /// Dropping it stops the sender.
    stop: Sender<()>,
    sender: JoinHandle<Result<u64>>,
    answers: Receiver<u64>,
    answered: Vec<u64>,
}

/// How a conversation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many messages were sent.
    pub sent: u64,
    /// The numbers of those that were never answered.
    pub lost: Vec<u64>,
}

impl Stream {
    /// Starts to talk to a server from inside a namespace.
    pub fn start(netns: &NetNs, transport: Transport, server: SocketAddr) -> Result<Stream> {
        let (stop, stopped) = channel();
        let (answer, answers) = channel();
        let sender = match transport {
            Transport::Tcp => {
                let stream = client::connect(netns, server).context("cannot start a stream")?;
                let reader = stream.try_clone()?;
                std::thread::spawn(move || receive_lines(reader, &answer));
                std::thread::spawn(move || send_lines(stream, &stopped))
            }
            Transport::Udp => {
                let socket = client::datagrams_to(netns, server)?;
                socket.set_read_timeout(Some(LATE))?;
                let reader = socket.try_clone()?;
                std::thread::spawn(move || receive_datagrams(&reader, &answer));
                std::thread::spawn(move || send_datagrams(&socket, &stopped))
            }
        };
        Ok(Stream {
            stop,
            sender,
            answers,
            answered: Vec::new(),
        })
    }

    /// Waits until `count` more messages were answered.
    pub fn wait_for(&mut self, count: usize, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        for _ in 0..count {
            let left = deadline.saturating_duration_since(Instant::now());
            let number = self.answers.recv_timeout(left).with_context(|| {
                format!("the stream stands still: fewer than {count} answers in {patience:?}")
            })?;
            self.answered.push(number);
        }
        Ok(())
    }

    /// Stops, waits for late answers, and tells what was lost.
    pub fn finish(self) -> Result<Report> {
        drop(self.stop);
        let sent = match self.sender.join() {
            Ok(sent) => sent.context("the stream broke")?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let mut answered = self.answered;
        let deadline = Instant::now() + LATE;
        while (answered.len() as u64) < sent {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(number) => answered.push(number),
                Err(_) => break,
            }
        }
        let answered: std::collections::HashSet<_> = answered.into_iter().collect();
        Ok(Report {
            sent,
            lost: (0..sent)
                .filter(|number| !answered.contains(number))
                .collect(),
        })
    }
}

/// Calls `send` with 0, 1, 2, … at the pace, until stopped. Returns how many.
fn paced(stopped: &Receiver<()>, mut send: impl FnMut(u64) -> Result<()>) -> Result<u64> {
    use std::sync::mpsc::RecvTimeoutError::Timeout;
    let mut number = 0;
    loop {
        send(number).with_context(|| format!("at message {number}"))?;
        number += 1;
        if stopped.recv_timeout(PACE) != Err(Timeout) {
            return Ok(number);
        }
    }
}

fn send_lines(mut stream: TcpStream, stopped: &Receiver<()>) -> Result<u64> {
    stream.write_all(b"who is there?\n")?;
    let sent = paced(stopped, |number| Ok(writeln!(stream, "{number}")?));
    // The server closes when it has echoed everything, which ends our reader too.
    stream.shutdown(std::net::Shutdown::Write)?;
    sent
}

fn receive_lines(stream: TcpStream, answer: &Sender<u64>) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    if lines.next().is_none() {
        bail!("closed without a greeting");
    }
    for line in lines {
        answer.send(line?.parse()?)?;
    }
    Ok(())
}

fn send_datagrams(socket: &UdpSocket, stopped: &Receiver<()>) -> Result<u64> {
    paced(stopped, |number| {
        // A refusal that an earlier datagram met: that one counts as lost, this one is sent.
        if socket.send(number.to_string().as_bytes()).is_err() {
            socket.send(number.to_string().as_bytes())?;
        }
        Ok(())
    })
}

fn receive_datagrams(socket: &UdpSocket, answer: &Sender<u64>) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let text = std::str::from_utf8(&buffer[..length])?;
                answer.send(text.lines().nth(1).context("no echo")?.parse()?)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
    }
}
