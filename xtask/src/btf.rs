//! One correction of the kernel object's BTF: Rust has no `char`, so LLVM describes `i8` as a signed
//! number and `bpftool map dump` prints a text as a list of numbers. lb-common uses `i8` for text
//! only; saying so here makes the dumps readable.

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

/// `struct btf_header`, in 32-bit words: magic and version, hdr_len, type_off, type_len, str_off, str_len.
const HEADER_LEN: usize = 24;
const MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
/// Bits 24 to 27 of the word behind an INT.
const ENCODING: u32 = 0x0f00_0000;
const SIGNED: u32 = 1 << 24;
const CHAR: u32 = 2 << 24;

/// Declares every `i8` of an ELF object to be a character, and says how many there were.
pub(crate) fn declare_text(object: &mut [u8]) -> Result<usize> {
    let (start, len) = object::File::parse(&*object)
        .context("the object is no ELF file")?
        .section_by_name(".BTF")
        .and_then(|section| section.file_range())
        .context("the object has no .BTF section; was it linked with --btf?")?;
    let start = usize::try_from(start)?;
    let end = start + usize::try_from(len)?;
    patch(
        object
            .get_mut(start..end)
            .context("the .BTF section is outside of the object")?,
    )
}

fn patch(btf: &mut [u8]) -> Result<usize> {
    let magic = word(btf, 0)? & 0xffff;
    ensure!(
        magic == u32::from(MAGIC),
        "the .BTF section begins with {magic:#x}"
    );
    let header = size(word(btf, 4)?)?;
    ensure!(header >= HEADER_LEN, "a BTF header of {header} bytes");
    let types = header + size(word(btf, 8)?)?;
    let types_end = types + size(word(btf, 12)?)?;
    let strings = header + size(word(btf, 16)?)?;

    let mut at = types;
    let mut patched = 0;
    while at < types_end {
        let info = word(btf, at + 4)?;
        if is_i8(btf, at, strings)? && word(btf, at + 12)? & ENCODING == SIGNED {
            let int = word(btf, at + 12)? & !ENCODING | CHAR;
            btf[at + 12..at + 16].copy_from_slice(&int.to_le_bytes());
            patched += 1;
        }
        at += 12 + tail_len(info)?;
    }
    Ok(patched)
}

fn is_i8(btf: &[u8], at: usize, strings: usize) -> Result<bool> {
    let name = strings + size(word(btf, at)?)?;
    let is_byte = kind(word(btf, at + 4)?) == KIND_INT && word(btf, at + 8)? == 1;
    Ok(is_byte && btf.get(name..name + 3) == Some(b"i8\0"))
}

/// How much follows the three words that every type has (`include/uapi/linux/btf.h`).
fn tail_len(info: u32) -> Result<usize> {
    let members = size(info & 0xffff)?;
    Ok(match kind(info) {
        // INT, VAR, DECL_TAG: one word.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64.
        4 | 5 | 15 | 19 => 12 * members,
        // ENUM, FUNC_PROTO.
        6 | 13 => 8 * members,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG.
        2 | 7..=12 | 16 | 18 => 0,
        unknown => anyhow::bail!("BTF kind {unknown} is not known to xtask/src/btf.rs"),
    })
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn size(word: u32) -> Result<usize> {
    Ok(usize::try_from(word)?)
}

/// The BPF target is little-endian.
fn word(btf: &[u8], at: usize) -> Result<u32> {
    let bytes = btf.get(at..at + 4).context("the .BTF section is cut off")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with the given types; names are offsets into `\0i8\0u8\0x\0`.
    fn section(types: &[u32]) -> Vec<u8> {
        let types_len = u32::try_from(types.len() * 4).unwrap();
        let names = b"\0i8\0u8\0x\0";
        let header = [u32::from(MAGIC) | 1 << 16, 24, 0, types_len, types_len, 9];
        let words = header
            .iter()
            .chain(types)
            .flat_map(|word| word.to_le_bytes());
        words.chain(*names).collect()
    }

    const INT: u32 = 1 << 24;
    const STRUCT_OF_ONE: u32 = 4 << 24 | 1;
    const POINTER: u32 = 2 << 24;

    #[test]
    fn an_i8_becomes_a_character_wherever_it_stands() {
        let types = |encoding| {
            [
                [7, STRUCT_OF_ONE, 1, 7, 3, 0].as_slice(),
                &[0, POINTER, 1],
                &[1, INT, 1, encoding | 8],
            ]
            .concat()
        };
        let mut btf = section(&types(SIGNED));
        assert_eq!(patch(&mut btf).unwrap(), 1);
        assert_eq!(btf, section(&types(CHAR)));
        assert_eq!(patch(&mut btf).unwrap(), 0, "a second time changes nothing");
    }

    #[test]
    fn other_numbers_stay_numbers() {
        let u8_and_wide_i8 = [4, INT, 1, 8, 1, INT, 4, SIGNED | 32];
        let mut btf = section(&u8_and_wide_i8);
        assert_eq!(patch(&mut btf).unwrap(), 0);
        assert_eq!(btf, section(&u8_and_wide_i8));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let mut cut = section(&[1, INT, 1]);
        cut.truncate(30);
        assert!(patch(&mut cut).is_err());
        assert!(
            patch(&mut section(&[1, 31 << 24, 1])).is_err(),
            "a kind of the future"
        );
        assert!(patch(&mut [0; 24]).is_err(), "no magic number");
    }
}
