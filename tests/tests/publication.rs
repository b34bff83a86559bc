//! Publication by one word: the object really loads it at once, and a reader that walks a list while
//! lists are swapped never sees parts of two.

use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

use lb_tests::stress::{Goal, pass_entries_on_while_looking_up, swap_while_walking};
use object::{File, Object, ObjectSection, ObjectSymbol, RelocationTarget};

/// Where `cargo xtask build` puts an object; the variable is set by `cargo xtask test`.
fn built(variable: &str, name: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = env::var_os(variable).map_or_else(|| root.join("target").join(name), PathBuf::from);
    fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; run `cargo xtask build`", path.display());
    })
}

#[test]
fn a_walk_of_all_slots_never_mixes_two_lists() {
    let object = built("NEARHOP_WALK_OBJECT", "lb-ebpf-walk.o");
    let goal = Goal {
        walks: 10_000_000,
        swaps: 200,
        limit: Duration::from_secs(240),
    };

    let report = swap_while_walking(&object, goal).unwrap();

    println!("{report:?}");
    assert_eq!(report.walks.mixtures, 0, "{report:?}");
    assert_eq!(report.walks.nothing, 0, "{report:?}");
}

#[test]
fn an_address_never_leads_to_the_service_whose_entry_took_its_place() {
    let object = built("NEARHOP_WALK_OBJECT", "lb-ebpf-walk.o");

    let report = pass_entries_on_while_looking_up(&object, 200_000).unwrap();

    println!("{report:?}");
    assert!(
        report.walks.whole > 0 && report.walks.nothing > 0,
        "{report:?}"
    );
    assert_eq!(report.walks.mixtures, 0, "{report:?}");
}

#[test]
fn the_publication_word_is_loaded_at_once() {
    let bytes = built("NEARHOP_BPF_OBJECT", "lb-ebpf.o");
    let object = File::parse(&*bytes).unwrap();

    let mut programs = BTreeMap::new();
    for section in object.sections() {
        for start in lookups(&object, &section, "SERVICES") {
            let code = &section.data().unwrap()[start..];
            let name = section.name().unwrap().to_owned();
            programs
                .entry(name)
                .or_insert_with(Vec::new)
                .push(loads_of_result(code));
        }
    }

    let choosers = [
        "cgroup/connect4",
        "cgroup/connect6",
        "cgroup/sendmsg4",
        "cgroup/sendmsg6",
        "classifier",
    ];
    assert_eq!(Vec::from_iter(programs.keys()), choosers);
    let (ring, affinity_secs) = ([Load { bytes: 8 }], [Load { bytes: 4 }]);
    for (program, lookups) in programs {
        let whole = |loads: &Vec<Load>| *loads == ring || *loads == affinity_secs;
        assert!(
            lookups.iter().all(whole) && lookups.iter().any(|loads| *loads == ring),
            "{program}, loads from a SERVICES cell by look-up: {lookups:?}"
        );
    }
}

/// A load through the pointer that a map look-up returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    bytes: u8,
}

/// Offsets at which the section names a map.
fn lookups(object: &File<'_>, section: &object::Section<'_, '_>, map: &str) -> Vec<usize> {
    let names_it = |target| {
        let RelocationTarget::Symbol(symbol) = target else {
            return false;
        };
        let symbol = object.symbol_by_index(symbol);
        symbol.is_ok_and(|symbol| symbol.name() == Ok(map))
    };
    let is_code = section
        .name()
        .is_ok_and(|name| name.starts_with("cgroup/") || name == "classifier");
    let relocations = section.relocations().filter(|_| is_code);
    relocations
        .filter(|(_, relocation)| names_it(relocation.target()))
        .map(|(offset, _)| usize::try_from(offset).expect("a section fits into memory"))
        .collect()
}

/// Follows the result of the next `bpf_map_lookup_elem`, through copies of the register, up to the next
/// call, and returns what is loaded through it.
fn loads_of_result(code: &[u8]) -> Vec<Load> {
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const MOV: u8 = 0xbf;
    const ADD: [u8; 2] = [0x07, 0x0f];
    const STORE_WORD: u8 = 0x7b;
    /// Of a 64-bit constant, which takes two instructions.
    const SECOND_HALF: u8 = 0;
    const LOADS: [(u8, u8); 4] = [(0x71, 1), (0x69, 2), (0x61, 4), (0x79, 8)];

    let mut instructions = code
        .chunks_exact(8)
        .map(|bytes| (bytes[0], bytes[1] & 15, bytes[1] >> 4));
    assert!(
        instructions.any(|(op, ..)| op == CALL),
        "no call after the map's address"
    );
    let mut pointers = vec![0];
    let mut loads = Vec::new();
    for (op, to, from) in instructions.take_while(|(op, ..)| *op != CALL && *op != EXIT) {
        let through = pointers.contains(&from);
        if op == STORE_WORD {
            assert!(
                !through,
                "the pointer is spilled, which this test does not follow"
            );
            continue;
        }
        if let Some((_, bytes)) = LOADS.iter().find(|(load, _)| *load == op && through) {
            loads.push(Load { bytes: *bytes });
        }
        let writes_no_register = matches!(op & 7, 2 | 3 | 5 | 6) || op == SECOND_HALF;
        if writes_no_register || ADD.contains(&op) {
            continue;
        }
        pointers.retain(|register| *register != to);
        if op == MOV && through {
            pointers.push(to);
        }
    }
    loads
}
