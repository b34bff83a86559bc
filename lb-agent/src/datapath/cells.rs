//! An array map as typed cells in memory: no system call for a read or a write, and one atomic store for
//! what readers must see at once. Safe code over `sys::Mapping`.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, Release},
        fence,
    },
};

use aya::maps::MapData;
use bytemuck::Pod;

use crate::datapath::sys::Mapping;

/// The cells of one array.
#[derive(Debug)]
pub(super) struct Cells<T> {
    mapping: Mapping,
    count: u32,
    cell: PhantomData<T>,
}

impl<T: Pod> Cells<T> {
    /// A cell is whole words: array elements lie at multiples of eight bytes.
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(size_of::<u64>()));
        size_of::<T>() / size_of::<u64>()
    };

    /// Maps a whole array into memory.
    pub(super) fn open(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        if info.value_size() as usize != size_of::<T>() {
            let what = "its cells have another size than this agent's; use the agent that made it, or \
                        run `lb-agent cleanup`";
            return Err(io::Error::other(what));
        }
        Self::map(map.fd().as_fd(), info.max_entries())
    }

    fn map(map: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        Ok(Self {
            mapping: Mapping::new(map, count as usize * Self::WORDS)?,
            count,
            cell: PhantomData,
        })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Reads a cell, word by word.
    pub(super) fn read(&self, at: u32) -> io::Result<T> {
        let mut value = T::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.cell(at)?) {
            to.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        Ok(value)
    }

    pub(super) fn read_all(&self) -> io::Result<Vec<T>> {
        (0..self.count).map(|at| self.read(at)).collect()
    }

    /// Copies all cells into a larger array that nobody reads yet.
    pub(super) fn fill(&self, larger: &Self) -> io::Result<()> {
        if larger.count <= self.count {
            return Ok(());
        }
        (0..self.count).try_for_each(|at| larger.write(at, &self.read(at)?))
    }

    /// Adds the words of a cell to those of another map's, and leaves zeros. Others may be adding to
    /// either; and done twice, it adds once.
    pub(super) fn hand_over(&self, at: u32, to: &Self) -> io::Result<()> {
        for (from, to) in self.cell(at)?.iter().zip(to.cell(at)?) {
            to.fetch_add(from.swap(0, Relaxed), Relaxed);
        }
        Ok(())
    }

    /// Adds to the first word of a cell, around zero. Others may be adding too.
    pub(super) fn add(&self, at: u32, number: u64) -> io::Result<()> {
        self.cell(at)?[0].fetch_add(number, Relaxed);
        Ok(())
    }

    /// Writes a cell, word by word: only while no reader uses it.
    pub(super) fn write(&self, at: u32, value: &T) -> io::Result<()> {
        for (word, from) in self.cell(at)?.iter().zip(words(value)) {
            word.store(from, Relaxed);
        }
        Ok(())
    }

    /// Writes a cell that becomes valid by its word at `offset` bytes: invalid first, valid last.
    pub(super) fn write_guarded(
        &self,
        at: u32,
        value: &T,
        offset: usize,
        invalid: u64,
    ) -> io::Result<()> {
        let (cell, guard) = (self.cell(at)?, offset / 8);
        cell[guard].store(invalid, Relaxed);
        fence(Release);
        for (index, from) in words(value)
            .enumerate()
            .filter(|(index, _)| *index != guard)
        {
            cell[index].store(from, Relaxed);
        }
        self.publish(at, offset, words(value).nth(guard).unwrap_or(invalid))
    }

    /// Stores the word at `offset` bytes of a cell, after everything written before.
    pub(super) fn publish(&self, at: u32, offset: usize, word: u64) -> io::Result<()> {
        self.cell(at)?[offset / 8].store(word, Release);
        Ok(())
    }

    fn cell(&self, at: u32) -> io::Result<&[AtomicU64]> {
        if at >= self.count {
            let beyond = format!("there is no cell {at}: it has {}", self.count);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, beyond));
        }
        Ok(&self.mapping.words()[at as usize * Self::WORDS..][..Self::WORDS])
    }
}

fn words<T: Pod>(value: &T) -> impl Iterator<Item = u64> {
    let chunks = bytemuck::bytes_of(value).as_chunks::<8>().0;
    chunks.iter().map(|word| u64::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use lb_common::tables::{Backend, Membership, Stats};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const GUARD: usize = std::mem::offset_of!(Backend, membership);

    #[test]
    fn a_cell_reads_back_as_it_was_written_and_its_neighbours_stay() {
        let cells = cells(3);
        cells.write(1, &backend()).unwrap();

        assert_eq!(cells.read(1).unwrap(), backend());
        let empty = bytemuck::Zeroable::zeroed();
        assert_eq!(cells.read_all().unwrap(), [empty, backend(), empty]);
    }

    #[test]
    fn a_guarded_cell_is_whole_and_valid_in_the_end() {
        let cells = cells(1);
        cells.write_guarded(0, &backend(), GUARD, 0).unwrap();

        assert_eq!(cells.read(0).unwrap(), backend());
    }

    #[test]
    fn one_word_is_published_and_the_others_stay() {
        let cells = cells(1);
        cells.write(0, &backend()).unwrap();
        let membership = Membership {
            lists: 0,
            generation: 9,
        };
        cells.publish(0, GUARD, membership.word()).unwrap();

        let published = Backend {
            membership,
            ..backend()
        };
        assert_eq!(cells.read(0).unwrap(), published);
    }

    #[test]
    fn a_larger_array_is_filled_from_the_front_and_another_left_alone() {
        let (small, large, same) = (cells(2), cells(4), cells(2));
        small.write(1, &backend()).unwrap();
        small.fill(&large).unwrap();
        small.fill(&same).unwrap();

        let empty = bytemuck::Zeroable::zeroed();
        assert_eq!(large.read_all().unwrap(), [empty, backend(), empty, empty]);
        assert_eq!(same.read_all().unwrap(), [empty, empty]);
    }

    #[test]
    fn counts_that_are_handed_over_twice_are_added_once() {
        let (from, to) = (cells::<Stats>(2), cells::<Stats>(2));
        let stats = |connections, active| Stats {
            connections,
            active,
            ..Stats::default()
        };
        from.write(1, &stats(5, 2)).unwrap();
        // One connection began here, and two of those that began there ended here.
        to.write(1, &stats(1, 0_u64.wrapping_sub(1))).unwrap();

        from.hand_over(1, &to).unwrap();
        from.hand_over(1, &to).unwrap();

        assert_eq!(to.read_all().unwrap(), [stats(0, 0), stats(6, 1)]);
        assert_eq!(from.read(1).unwrap(), stats(0, 0));
    }

    #[test]
    fn a_cell_beyond_the_end_is_an_error() {
        let cells = cells::<Backend>(2);

        assert!(cells.read(2).is_err());
        assert!(cells.write(2, &backend()).is_err());
        assert!(cells.publish(u32::MAX, GUARD, 1).is_err());
    }

    fn backend() -> Backend {
        Backend {
            addr: lb_common::addr::Addr::v4([10, 0, 1, 5]),
            service: 1,
            port: 8080,
            zone: 2,
            proto: 6,
            locality: 3,
            pad: [0; 6],
            membership: Membership {
                lists: 5,
                generation: 8,
            },
        }
    }

    /// On memory of no map, which needs no capability.
    fn cells<T: Pod>(count: u32) -> Cells<T> {
        let memory = memfd_create("cells", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, u64::from(count) * size_of::<T>() as u64).unwrap();
        Cells::map(memory.as_fd(), count).unwrap()
    }
}
