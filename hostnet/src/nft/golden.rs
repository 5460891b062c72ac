//! The bytes of messages, beside those that nft 1.0.6 sends for the same words (`nft --debug=mnl`).

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::batch::Batch;
use super::expr::Expr;
use super::set::SetDecl;
use super::wire::{self, Attrs};
use super::{
    CT_DNAT, CT_ESTABLISHED, CT_RELATED, Chain, Changes, Element, FIB_LOCAL, FieldType, Hook, Key,
    KeyType, NatFlags, Op, Proto, Rule, Selector, TableId, dump, goto,
};
use crate::vocab::Family;

const V4: Family = Family::V4;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The attributes of the messages that these operations on `ip t` become.
fn attributes(ops: Vec<Op>) -> Vec<String> {
    let changes = Changes {
        table: TableId::new(V4, "t"),
        ops,
    };
    let bytes = Batch::compile(&changes, 0..changes.ops.len(), None, 1).bytes;
    let messages = wire::messages(&bytes).unwrap();
    messages[1..messages.len() - 1]
        .iter()
        .map(|message| hex(&message.payload[4..]))
        .collect()
}

fn rule(rule: Rule) -> String {
    attributes(vec![Op::SetRules("c".into(), vec![rule])]).remove(1)
}

fn set(decl: SetDecl) -> String {
    attributes(vec![Op::AddSet(Arc::new(decl))]).remove(0)
}

#[test]
fn a_table() {
    assert_eq!(
        attributes(vec![Op::AddTable { comment: None }]),
        ["06000100740000000800020000000000"]
    );
}

#[test]
fn a_base_chain_with_a_comment() {
    let chain = Chain::nat(Hook::Prerouting, -100).comment("comes in");
    assert_eq!(
        attributes(vec![Op::AddChain("pre".into(), Arc::new(chain))]),
        [
            "06000100740000000800030070726500080007006e617400080005000000000114000480080001000000000008\
          000200ffffff9c0f000c000009636f6d657320696e0000"
        ]
    );
}

/// `meta l4proto tcp ct status dnat ip saddr != 10.244.0.0/16 ip daddr 172.16.0.0/12 masquerade fully-random
/// comment "two prefixes"`
#[test]
fn a_rule_with_prefixes_of_whole_bytes_and_of_bits() {
    assert_eq!(
        rule(
            Rule::new()
                .eq(Selector::L4Proto, Proto::TCP)
                .has(Selector::CtStatus, CT_DNAT)
                .outside(Selector::Saddr(V4), "10.244.0.0/16".parse().unwrap())
                .within(Selector::Daddr(V4), "172.16.0.0/12".parse().unwrap())
                .masquerade(NatFlags::FULLY_RANDOM)
                .comment("two prefixes")
        ),
        "060001007400000006000200630000000402048024000180090001006d657461000000001400028008000200000000100\
         8000100000000012c00018008000100636d700020000280080001000000000108000200000000000c0003800500010006\
         0000002000018007000100637400001400028008000200000000020800010000000001440001800c00010062697477697\
         36500340002800800010000000001080002000000000108000300000000040c00048008000100200000000c0005800800\
         0100000000002c00018008000100636d700020000280080001000000000108000200000000010c0003800800010000000\
         000340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000000c080004\
         00000000022c00018008000100636d700020000280080001000000000108000200000000010c000380060001000af4000\
         0340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000001008000400\
         00000004440001800c0001006269747769736500340002800800010000000001080002000000000108000300000000040\
         c00048008000100fff000000c00058008000100000000002c00018008000100636d700020000280080001000000000108\
         000200000000000c00038008000100ac1000001c000180090001006d617371000000000c0002800800010000000010130\
         00700000d74776f2070726566697865730000"
    );
}

/// `iifname "eth*" oifname != "cni0" return`
#[test]
fn a_rule_with_interfaces() {
    assert_eq!(
        rule(
            Rule::new()
                .eq(Selector::IifName, "eth*")
                .ne(Selector::OifName, "cni0")
                .return_()
        ),
        "06000100740000000600020063000000e000048024000180090001006d65746100000000140002800800020000000006\
         08000100000000012c00018008000100636d700020000280080001000000000108000200000000000c00038007000100\
         6574680024000180090001006d6574610000000014000280080002000000000708000100000000013800018008000100\
         636d70002c000280080001000000000108000200000000011800038014000100636e6930000000000000000000000000\
         300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c00028008000100fffffffb"
    );
}

/// `ct state established,related fib daddr type local accept`
#[test]
fn a_rule_with_connection_state_and_fib() {
    assert_eq!(
        rule(
            Rule::new()
                .has(Selector::CtState, CT_ESTABLISHED | CT_RELATED)
                .eq(Selector::FibDaddrType, FIB_LOCAL)
                .accept()
        ),
        "060001007400000006000200630000001801048020000180070001006374000014000280080002000000000008000100\
         00000001440001800c000100626974776973650034000280080001000000000108000200000000010800030000000004\
         0c00048008000100060000000c00058008000100000000002c00018008000100636d7000200002800800010000000001\
         08000200000000010c00038008000100000000002800018008000100666962001c000280080003000000000208000200\
         0000000308000100000000012c00018008000100636d700020000280080001000000000108000200000000000c000380\
         0800010002000000300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c000280\
         0800010000000001"
    );
}

/// `meta l4proto tcp reject with tcp reset`
#[test]
fn a_rule_that_resets() {
    assert_eq!(
        rule(
            Rule::new()
                .eq(Selector::L4Proto, Proto::TCP)
                .reject_tcp_reset()
        ),
        "060001007400000006000200630000007800048024000180090001006d65746100000000140002800800020000000010\
         08000100000000012c00018008000100636d700020000280080001000000000108000200000000000c00038005000100\
         06000000240001800b00010072656a65637400001400028008000100000000010500020000000000"
    );
}

/// `map endpoints { typeof ip daddr . meta l4proto . th dport . numgen random mod 1 : ip daddr . th dport }`
#[test]
fn the_types_of_a_map_by_typeof() {
    let slot = Selector::Random(1);
    let key = KeyType::typeof_([
        Selector::Daddr(V4),
        Selector::L4Proto,
        Selector::Dport,
        slot,
    ]);
    let data = KeyType::typeof_([Selector::Daddr(V4), Selector::Dport]);
    assert_eq!(
        set(SetDecl::map("endpoints", key, data)),
        // Up to here the table's name, which is another.
        "0600010074000000".to_owned()
            + "0e000200656e64706f696e7473000000080003000000000808000400001cc34408000500000000100800060000\
               0001cd080007000000000808000a0000000001ae000d00000400000000010400000000036000040d000000015800\
               14000407000000010c00040c00000001040c000000010e0004090000000106000410000000021400040700000001\
               0c00040b000000010402000000031a0004170000000112000401000000010401000000020400000000043400040d\
               000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c00040b000000010402\
               0000000604000000000000"
    );
}

/// `map vips { type ipv4_addr . inet_proto . inet_service : verdict }`
#[test]
fn the_types_of_a_verdict_map() {
    let key = KeyType::of([
        FieldType::Ipv4Addr,
        FieldType::InetProto,
        FieldType::InetService,
    ]);
    assert_eq!(
        set(SetDecl::vmap("vips", key)),
        "0600010074000000".to_owned()
            + "0900020076697073000000000800030000000008080004000000730d080005000000000c08000600ffffff0008\
               0007000000000008000a000000000120000d00000400000000010400000000030800040d0000000100060400000000"
    );
}

/// `set aff { typeof ip saddr; size 65536; flags dynamic,timeout; timeout 3h }`
#[test]
fn the_types_of_a_dynamic_set() {
    let key = KeyType::typeof_([Selector::Saddr(V4)]);
    assert_eq!(
        set(SetDecl::set("aff", key).dynamic(Duration::from_secs(10_800), 65_536)),
        "0600010074000000080002006166660008000300000000300800040000000007080005000000000408000a0000000001\
         0c00098008000100000100000c000b000000000000a4cb8020000d000004020000000314000407000000010c00040c00\
         000001040b000000"
    );
}

/// `10.96.0.10 . udp . 53 comment "kube-system/kube-dns:dns" : goto lb-1`
#[test]
fn an_element_of_a_verdict_map() {
    let key = KeyType::of([
        FieldType::Ipv4Addr,
        FieldType::InetProto,
        FieldType::InetService,
    ]);
    let vip = Key::from((std::net::Ipv4Addr::new(10, 96, 0, 10), Proto::UDP, 53_u16));
    let element = Element::from(goto("lb-1")).comment("kube-system/kube-dns:dns");
    let decl = Arc::new(SetDecl::vmap("vips", key));
    assert_eq!(
        attributes(vec![Op::AddElement(decl, vip, element)]),
        ["0600010074000000090002007669707300000000\
          58000380\
          54000180140001801000\
          01000a60000a11000000003500001c0002801800028008000100fffffffc090002006c622d31000000001f0006000019\
          6b7562652d73797374656d2f6b7562652d646e733a646e730000"]
    );
}

proptest! {
    /// What comes from the kernel is not trusted either: a decoder answers, or says that it cannot.
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        dump::decode_all(&bytes);
    }

    /// Near misses go deeper than noise.
    #[test]
    fn no_damage_to_a_message_makes_a_decoder_panic(at in 0..400_usize, byte in any::<u8>()) {
        let slot = Selector::Random(1);
        let key = KeyType::typeof_([Selector::Daddr(V4), Selector::L4Proto, Selector::Dport, slot]);
        let data = KeyType::typeof_([Selector::Daddr(V4), Selector::Dport]);
        let decl = SetDecl::map("endpoints", key, data).comment("slots");
        let rule = Rule::new().dnat_to_map(V4, [Selector::Daddr(V4), slot], "endpoints").comment("x");
        let changes = Changes {
            table: TableId::new(V4, "t"),
            ops: vec![Op::SetRules("c".into(), vec![rule]), Op::AddSet(Arc::new(decl.clone()))],
        };
        let mut bytes = Batch::compile(&changes, 0..changes.ops.len(), None, 1).bytes;
        let at = at % bytes.len();
        bytes[at] = byte;
        for message in wire::messages(&bytes).unwrap_or_default() {
            let _ = SetDecl::decode(message.attrs());
            for (_, value) in message.attrs() {
                for (_, value) in Attrs(value) {
                    let _ = Expr::decode(Attrs(value));
                }
            }
        }
    }
}
