//! Connections and bytes of Services, beside what really went over them.

use cli::top::{Order, UseTable, top};
use hostnet::testkit::ask_tcp;
use hostnet::vocab::Family;

use crate::world::{Mode, World};

#[test]
fn connections_and_bytes_are_those_that_went_through_a_service() {
    for (family, mode) in [
        (Family::V4, Mode::Nft),
        (Family::V6, Mode::Nft),
        (Family::V4, Mode::Iptables),
    ] {
        let world = World::of(family, mode);
        assert!(ask_tcp(&world.b, &world.say("10.96.0.10:80")).is_ok());
        let uses = top(&mut world.kernel(), Order::Bytes).unwrap();
        let [one] = &uses[..] else {
            panic!("{}", UseTable(&uses));
        };
        assert_eq!((one.connections, one.received), (1, None));
        let text = UseTable(&uses).to_string();
        assert!(text.contains("nf_conntrack_acct=1"), "{text}");

        world.node.set_sysctl("netfilter/nf_conntrack_acct", "1");
        for _ in 0..3 {
            assert!(ask_tcp(&world.b, &world.say("10.96.0.11:80")).is_ok());
        }
        // Not a Service's.
        assert!(ask_tcp(&world.b, &world.say("10.244.3.2:8080")).is_ok());
        let uses = top(&mut world.kernel(), Order::Connections).unwrap();
        let [far, web] = &uses[..] else {
            panic!("{}", UseTable(&uses));
        };
        assert_eq!(
            (far.service.as_str(), web.service.as_str()),
            ("default/far", "default/web")
        );
        assert_eq!((far.connections, web.connections), (3, 1));
        assert_eq!(far.endpoint.to_string(), world.say("10.244.3.2:8080"));
        assert_eq!(web.pod.as_deref(), Some("default/a"));
        assert!(far.received > Some(0) && far.sent > Some(0), "{far:?}");
        let by_name = top(&mut world.kernel(), Order::Name).unwrap();
        assert_eq!(by_name[0].service, "default/far");
        let text = UseTable(&by_name).to_string();
        assert!(text.starts_with("SERVICE "), "{text}");
    }
}
