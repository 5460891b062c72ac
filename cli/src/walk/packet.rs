//! A packet that opens a connection, and what the expressions of rules load of it.

use std::net::IpAddr;

use hostnet::nft::{CT_DNAT, CT_NEW, CtKey, Datum, Header, Key, MetaKey, Proto};
use hostnet::vocab::{Family, IfName};

/// A packet that opens a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its transport protocol.
    pub proto: Proto,
    /// Its source.
    pub source: IpAddr,
    /// Where it goes now.
    pub destination: IpAddr,
    /// At which port.
    pub port: u16,
    /// Its mark.
    pub mark: u32,
    /// Where it was sent to, if that has been translated.
    pub original: Option<(IpAddr, u16)>,
    /// The device that it came in by; `None`: this node sends it.
    pub iif: Option<Device>,
    /// The device that it leaves by, once that is known.
    pub oif: Option<Device>,
}

/// A device by index and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The index.
    pub index: u32,
    /// The name.
    pub name: IfName,
}

/// A source port such as clients have; rules that ask for it are rare.
pub(super) const SOURCE_PORT: u16 = 40_000;

impl Packet {
    /// The family.
    pub fn family(&self) -> Family {
        Family::of(self.destination)
    }

    /// Where it was sent to at first.
    pub fn first_destination(&self) -> (IpAddr, u16) {
        self.original.unwrap_or((self.destination, self.port))
    }

    /// The packet after its destination was translated.
    pub fn translated(&self, destination: IpAddr, port: Option<u16>) -> Packet {
        Packet {
            destination,
            port: port.unwrap_or(self.port),
            original: Some(self.first_destination()),
            ..self.clone()
        }
    }

    /// Bytes of a header.
    pub(super) fn payload(&self, header: Header, offset: u32, len: u32) -> Option<Vec<u8>> {
        let bytes = match (header, self.source, self.destination) {
            (Header::NETWORK, IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, self.proto.0, 0, 0];
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            (Header::NETWORK, IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = vec![0x60, 0, 0, 0, 0, 0, self.proto.0, 64];
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            (Header::TRANSPORT, ..) => {
                let ports = [SOURCE_PORT.to_be_bytes(), self.port.to_be_bytes()];
                ports.concat()
            }
            _ => return None,
        };
        let (from, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        bytes.get(from..from + len).map(<[u8]>::to_vec)
    }

    /// What the kernel knows of the packet.
    pub(super) fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        // `NFT_META_OIF`, `NFT_META_NFPROTO`.
        const OIF: MetaKey = MetaKey(5);
        const NFPROTO: MetaKey = MetaKey(15);
        let (iif, oif) = (&self.iif, &self.oif);
        let index = |device: &Option<Device>| device.as_ref().map_or(0, |device| device.index);
        let name = |device: &Option<Device>| {
            let name = device.as_ref().map_or("", |device| device.name.as_str());
            Key::from(Datum::from(name)).as_bytes().to_vec()
        };
        Some(match key {
            MetaKey::MARK => self.mark.to_ne_bytes().into(),
            MetaKey::IIF => index(iif).to_ne_bytes().into(),
            OIF => index(oif).to_ne_bytes().into(),
            MetaKey::IIFNAME => name(iif),
            MetaKey::OIFNAME => name(oif),
            MetaKey::L4PROTO => vec![self.proto.0],
            NFPROTO => vec![match self.family() {
                Family::V4 => 2,
                Family::V6 => 10,
            }],
            _ => return None,
        })
    }

    /// What the kernel knows of its connection.
    pub(super) fn ct(&self, key: CtKey) -> Option<Vec<u8>> {
        let (original, port) = self.first_destination();
        Some(match key {
            CtKey::STATE => CT_NEW.to_ne_bytes().into(),
            CtKey::STATUS => {
                let is_translated = self.original.is_some();
                let bits = if is_translated { CT_DNAT } else { 0 };
                bits.to_ne_bytes().into()
            }
            CtKey::PROTO_DST => port.to_be_bytes().into(),
            CtKey::SRC_IP | CtKey::SRC_IP6 => octets(self.source),
            CtKey::DST_IP | CtKey::DST_IP6 => octets(original),
            _ => return None,
        })
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}
