//! Which of this machine's interfaces the packet programs are for. Pure.
//!
//! A packet that is to be translated comes in by a pod's interface, on the host's side, or by one to other
//! machines, and leaves by one. All of them look like Ethernet. Where several interfaces stand for one
//! wire, each packet is to meet the programs once: at the ports of a bridge, because a packet between two
//! of them need not pass the bridge's own interface; at a bond, and not at the interfaces below it.

use anyhow::{Context, Result};
use glob::Pattern;

/// A network interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it, in this network namespace.
    pub index: u32,
    pub name: String,
    pub kind: Kind,
    /// Its packets begin with an Ethernet header. Loopback's do not count.
    pub is_ethernet: bool,
    /// The bridge, bond or the like that it belongs to.
    pub master: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bridge,
    /// Also a team.
    Bond,
    Dummy,
    Other,
}

/// Names given by hand, as the shell writes patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// These, whatever they are, instead of those that the rule finds.
    pub only: Vec<Pattern>,
    /// Not these.
    pub except: Vec<Pattern>,
}

impl Rule {
    /// Those that get the programs.
    #[must_use]
    pub fn choose(&self, all: &[Interface]) -> Vec<Interface> {
        let chosen = all.iter().filter(|interface| self.takes(interface, all));
        chosen.cloned().collect()
    }

    /// The programs cannot read what does not begin with an Ethernet header.
    fn takes(&self, interface: &Interface, all: &[Interface]) -> bool {
        let named = |patterns: &[Pattern]| {
            patterns
                .iter()
                .any(|pattern| pattern.matches(&interface.name))
        };
        if !interface.is_ethernet || named(&self.except) {
            return false;
        }
        if !self.only.is_empty() {
            return named(&self.only);
        }
        let is_below_bond = || {
            let master = all
                .iter()
                .find(|other| interface.master == Some(other.index));
            master.is_some_and(|master| master.kind == Kind::Bond)
        };
        match interface.kind {
            Kind::Bridge | Kind::Dummy => false,
            Kind::Bond | Kind::Other => !is_below_bond(),
        }
    }
}

/// A pattern of interfaces' names, as the shell writes one.
///
/// # Errors
///
/// It is none.
pub fn pattern(text: &str) -> Result<Pattern> {
    Pattern::new(text).with_context(|| {
        format!("{text:?} is no pattern of interface names; write it as for the shell, such as eth* or ens[0-9]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ethernet_interface_is_taken_but_bridges_dummies_and_what_is_below_a_bond() {
        let all = [
            not_ethernet(1, "lo"),
            interface(2, "eth0"),
            of_kind(3, "bond0", Kind::Bond),
            below(4, "eth1", 3),
            below(5, "eth2", 3),
            of_kind(6, "cni0", Kind::Bridge),
            below(7, "veth1", 6),
            interface(8, "flannel.1"),
            of_kind(9, "kube-ipvs0", Kind::Dummy),
            not_ethernet(10, "tunl0"),
            // Its master is in another network namespace.
            below(11, "eth3", 99),
        ];

        let chosen = names(&Rule::default(), &all);

        assert_eq!(chosen, ["eth0", "bond0", "veth1", "flannel.1", "eth3"]);
    }

    #[test]
    fn names_given_by_hand_win_over_the_rule_and_exceptions_over_both() {
        let all = [
            not_ethernet(1, "lo"),
            interface(2, "eth0"),
            of_kind(3, "bond0", Kind::Bond),
            below(4, "eth1", 3),
            of_kind(5, "dummy0", Kind::Dummy),
        ];

        let only = rule(&["eth*", "dummy?"], &[]);
        let except = rule(&[], &["eth[0-3]"]);
        let both = rule(&["*"], &["bond*"]);

        assert_eq!(names(&only, &all), ["eth0", "eth1", "dummy0"]);
        assert_eq!(names(&except, &all), ["bond0"]);
        assert_eq!(names(&both, &all), ["eth0", "eth1", "dummy0"]);
    }

    #[test]
    fn what_is_no_pattern_is_said_to_be_none() {
        let error = pattern("eth[0").unwrap_err().to_string();

        assert!(error.contains("\"eth[0\""), "{error}");
    }

    fn names(rule: &Rule, all: &[Interface]) -> Vec<String> {
        let chosen = rule.choose(all);
        chosen.into_iter().map(|interface| interface.name).collect()
    }

    fn rule(only: &[&str], except: &[&str]) -> Rule {
        let patterns = |texts: &[&str]| texts.iter().map(|text| pattern(text).unwrap()).collect();
        Rule {
            only: patterns(only),
            except: patterns(except),
        }
    }

    fn interface(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            kind: Kind::Other,
            is_ethernet: true,
            master: None,
        }
    }

    fn of_kind(index: u32, name: &str, kind: Kind) -> Interface {
        Interface {
            kind,
            ..interface(index, name)
        }
    }

    fn below(index: u32, name: &str, master: u32) -> Interface {
        Interface {
            master: Some(master),
            ..interface(index, name)
        }
    }

    fn not_ethernet(index: u32, name: &str) -> Interface {
        Interface {
            is_ethernet: false,
            ..interface(index, name)
        }
    }
}
