//! Names inside map cells: fixed size, zero-filled, printed by `bpftool` as strings.

use core::{fmt, str};

use bytemuck::{Pod, Zeroable};

/// Up to `N - 1` bytes of ASCII, filled with zeros.
///
/// The element is `i8` because the build marks that type as a character in the object's BTF: `bpftool`
/// then prints `"default/web:http"` where an array of `u8` would be a column of numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Text<const N: usize> {
    /// ASCII, ended by at least one zero.
    pub chars: [i8; N],
}

impl<const N: usize> Text<N> {
    /// All zeros: an unused cell.
    pub const EMPTY: Self = Self { chars: [0; N] };

    /// Keeps what fits in `N - 1` bytes; other than printable ASCII becomes `?`, since one such byte
    /// would make the whole dump unreadable.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut cell = Self::EMPTY;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut cell.chars);
        for (to, c) in bytes.iter_mut().take(N - 1).zip(text.chars()) {
            *to = if c.is_ascii_graphic() || c == ' ' {
                c as u8
            } else {
                b'?'
            };
        }
        cell
    }

    /// The text without the zeros; empty if another writer left no ASCII here.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes: &[u8] = bytemuck::cast_slice(&self.chars);
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(N);
        str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    /// Whether the cell is unused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chars[0] == 0
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_and_still_ends_in_zero() {
        let text = Text::<4>::new("abcdef");

        assert_eq!(text.as_str(), "abc");
        assert_eq!(text.chars[3], 0);
    }

    #[test]
    fn unprintable_characters_do_not_reach_the_dump() {
        assert_eq!(Text::<8>::new("a\nü").as_str(), "a??");
    }
}
