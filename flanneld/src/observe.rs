//! Reading the kernel. No more than what is ours and what the choice of the interface needs is asked for.

use std::collections::BTreeMap;

use hostnet::{
    netlink::{LinkKind, route},
    nft::TableId,
    vocab::{Family, names},
    xtables,
};

use crate::{
    ByFamily, forward,
    host::{Error, Host},
    state::{Kernel, is_our_device},
};

impl Host {
    /// What the kernel holds, but for switches.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn observe(&mut self) -> Result<Kernel, Error> {
        let main = route::Filter {
            table: Some(route::TABLE_MAIN),
            ..route::Filter::default()
        };
        let mut kernel = Kernel {
            links: self.rtnl.links()?,
            addrs: self.rtnl.addrs(None)?,
            routes: self.rtnl.routes(main)?,
            ..Kernel::default()
        };
        let ours = kernel.links.iter().filter(|link| is_our_device(&link.name));
        for link in ours {
            kernel.neighs.extend(self.rtnl.neighs(Some(link.index))?);
            // Another kind of device has no forwarding entries of its own, or a bridge's, which are not ours.
            if matches!(link.kind, LinkKind::Vxlan(_)) {
                kernel.fdb.extend(self.rtnl.fdb(Some(link.index))?);
            }
        }
        for family in Family::ALL {
            let table = TableId::new(family, names::TABLE_FLANNEL);
            kernel.tables.extend(self.nft.observe(&table)?.table);
        }
        kernel.forward = forward::Seen {
            chains: self.nft.forward_chains()?,
            // A kernel that does not show its old tables leaves us without a hint for a person, and no more.
            legacy: ByFamily::from_fn(|family| xtables::forward_policy_is_drop(family).ok()?),
        };
        for family in Family::ALL {
            if kernel.forward.has_gate(family) {
                let table = forward::table(family);
                let rules = self
                    .nft
                    .marked_rules(&table, forward::CHAIN, &forward::marks())?;
                kernel.admitted.insert(table, rules);
            }
        }
        Ok(kernel)
    }

    /// The values of these switches. One that does not exist (yet) is left out.
    #[must_use]
    pub fn switches<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a String>,
    ) -> BTreeMap<String, String> {
        let read = |key: &String| Some((key.clone(), self.sysctl.get(key).ok()?));
        keys.into_iter().filter_map(read).collect()
    }
}
