//! Who owns which cell: plain allocators, seeded from the maps after a restart. What is freed here is
//! given out again at once; waiting out the grace period is the caller's part.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers below a limit, the lowest free one first: a dump then shows the cells in use together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Free numbers below `next`.
    free: BTreeSet<u32>,
    /// No number from here on was ever given out.
    next: u32,
    limit: u32,
}

impl Ids {
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            free: BTreeSet::new(),
            next: 0,
            limit,
        }
    }

    /// All of `used` are taken.
    #[must_use]
    pub fn seeded(limit: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(0, |last| last + 1);
        let free = (0..next).filter(|id| !used.contains(id)).collect();
        Self { free, next, limit }
    }

    /// Takes a number; `None` if all are taken.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        (self.next < self.limit).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Gives a number back.
    pub fn free(&mut self, id: u32) {
        self.free.insert(id);
        while self.next > 0 && self.free.remove(&(self.next - 1)) {
            self.next -= 1;
        }
    }

    /// How many there are.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many are taken.
    #[must_use]
    pub fn used(&self) -> u32 {
        let free = u32::try_from(self.free.len());
        self.next - free.expect("what is free lies below `next`")
    }

    /// How many can still be taken.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + (self.limit - self.next) as usize
    }
}

/// Ranges of an arena, first fit; neighbours merge when they are freed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Free ranges: start → length. No two touch.
    free: BTreeMap<u32, u32>,
    limit: u32,
}

impl Arena {
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, limit)]),
            limit,
        }
    }

    /// All of `used` (start, length) are taken; they may not overlap.
    #[must_use]
    pub fn seeded(limit: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let used: BTreeMap<u32, u32> = used.into_iter().filter(|(_, len)| *len > 0).collect();
        let mut arena = Self {
            free: BTreeMap::new(),
            limit,
        };
        let mut at = 0;
        for (start, len) in used.into_iter().chain([(limit, 0)]) {
            if start > at {
                arena.free.insert(at, start - at);
            }
            at = at.max(start + len);
        }
        arena
    }

    /// Takes a range; `None` if no free range is that long. An empty range starts at 0 and costs
    /// nothing.
    pub fn take(&mut self, len: u32) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        let (start, room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= len)
            .map(|(s, r)| (*s, *r))?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        Some(start)
    }

    /// Gives a range back.
    pub fn free(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        if let Some((before, room)) = self.free.range(..start).next_back().map(|(s, r)| (*s, *r))
            && before + room == start
        {
            start = before;
            len += room;
        }
        self.free.insert(start, len);
    }

    /// How many cells there are.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Cells in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.limit - self.free.values().sum::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_first() {
        let mut ids = Ids::seeded(4, &BTreeSet::from([0, 2]));

        assert_eq!(
            [ids.take(), ids.take(), ids.take()],
            [Some(1), Some(3), None]
        );
        ids.free(2);
        assert_eq!(ids.take(), Some(2));
    }

    #[test]
    fn freed_neighbours_merge() {
        let mut arena = Arena::new(8);
        let [a, b, c] = [arena.take(2), arena.take(2), arena.take(4)].map(Option::unwrap);

        arena.free(a, 2);
        arena.free(c, 4);
        assert_eq!(arena.take(5), None, "two holes are not one");
        arena.free(b, 2);
        assert_eq!(arena, Arena::new(8));
    }

    proptest! {
        #[test]
        fn ranges_in_use_never_overlap_and_a_seeded_arena_is_the_same(
            steps in prop::collection::vec((0..4u32, 0..9u32), 0..200),
        ) {
            let mut arena = Arena::new(64);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (what, len) in steps {
                if what == 0 && !used.is_empty() {
                    let (start, len) = used.swap_remove(len as usize % used.len());
                    arena.free(start, len);
                } else if let Some(start) = arena.take(len).filter(|_| len > 0) {
                    let apart = |(s, l): &(u32, u32)| start + len <= *s || s + l <= start;
                    prop_assert!(used.iter().all(apart), "{start}+{len} overlaps {used:?}");
                    prop_assert!(start + len <= 64);
                    used.push((start, len));
                }
                prop_assert_eq!(&Arena::seeded(64, used.iter().copied()), &arena);
                prop_assert_eq!(arena.used(), used.iter().map(|(_, len)| len).sum::<u32>());
            }
        }
    }
}
