//! Extended acknowledgements: the sentence by which the kernel explains a refusal
//! (include/uapi/linux/netlink.h, `enum nlmsgerr_attrs`).

use netlink_packet_core::NlasIterator;

/// `NLMSGERR_ATTR_MSG`.
const ATTR_MSG: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`.
const ATTR_OFFS: u16 = 2;

/// `NLM_F_CAPPED`: the request's payload is not echoed.
const F_CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow.
const F_ACK_TLVS: u16 = 0x200;

/// The length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// What the kernel says beside an error number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtAck {
    /// The sentence, if there is one.
    pub message: Option<String>,
    /// Where in the request the offending attribute starts, in bytes from the message's header.
    pub offset: Option<u32>,
}

impl ExtAck {
    /// Reads the body of an `NLMSG_ERROR` message (what follows the message's header) with the
    /// message's flags. Anything unreadable gives an empty value: the error number counts more.
    pub fn of_error(body: &[u8], flags: u16) -> ExtAck {
        if flags & F_ACK_TLVS == 0 {
            return ExtAck::default();
        }
        // The error number, then the request's header, then its payload unless capped.
        let Some(request) = body.get(4..) else {
            return ExtAck::default();
        };
        let request_len = match request.first_chunk::<4>() {
            Some(length) if flags & F_CAPPED == 0 => u32::from_ne_bytes(*length) as usize,
            _ => HEADER_LEN,
        };
        let attributes = request.get(request_len.next_multiple_of(4)..);
        ExtAck::of_attributes(attributes.unwrap_or_default())
    }

    /// Reads the attributes behind the error number of an `NLMSG_DONE` message.
    pub fn of_attributes(attributes: &[u8]) -> ExtAck {
        let mut ack = ExtAck::default();
        for nla in NlasIterator::new(attributes).map_while(std::result::Result::ok) {
            match nla.kind() {
                ATTR_MSG => {
                    let text = String::from_utf8_lossy(nla.value());
                    ack.message = Some(text.trim_end_matches('\0').to_owned());
                }
                ATTR_OFFS => {
                    ack.offset = nla.value().first_chunk().copied().map(u32::from_ne_bytes);
                }
                _ => {}
            }
        }
        ack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of a refusal as the kernel sends it to a socket with NETLINK_CAP_ACK.
    fn capped(message: &[u8]) -> Vec<u8> {
        let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
        body.extend([0; HEADER_LEN]);
        let length = 4 + message.len() as u16;
        body.extend(length.to_ne_bytes());
        body.extend(ATTR_MSG.to_ne_bytes());
        body.extend(message);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(8u16.to_ne_bytes());
        body.extend(ATTR_OFFS.to_ne_bytes());
        body.extend(36u32.to_ne_bytes());
        body
    }

    #[test]
    fn reads_sentence_and_offset() {
        let ack = ExtAck::of_error(
            &capped(b"mtu greater than device maximum\0"),
            F_CAPPED | F_ACK_TLVS,
        );
        assert_eq!(
            ack.message.as_deref(),
            Some("mtu greater than device maximum")
        );
        assert_eq!(ack.offset, Some(36));
    }

    #[test]
    fn reads_behind_an_echoed_request() {
        let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
        let request_len = 21u32;
        body.extend(request_len.to_ne_bytes());
        body.resize(4 + request_len.next_multiple_of(4) as usize, 0xff);
        body.extend(&capped(b"why\0")[4 + HEADER_LEN..]);
        assert_eq!(
            ExtAck::of_error(&body, F_ACK_TLVS).message.as_deref(),
            Some("why")
        );
    }

    #[test]
    fn rubbish_gives_nothing() {
        let body = capped(b"why\0");
        for end in 0..body.len() {
            let _ = ExtAck::of_error(&body[..end], F_CAPPED | F_ACK_TLVS);
            let _ = ExtAck::of_error(&body[..end], F_ACK_TLVS);
        }
        assert_eq!(ExtAck::of_error(&body, 0), ExtAck::default());
    }
}
