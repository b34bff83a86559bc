//! CRC-32c, SCTP's checksum (RFC 9260, appendix A), byte by byte: programs have no room for more.

/// Before the first byte.
pub const BEGIN: u32 = u32::MAX;

/// The polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What each byte adds.
static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte: u8 = 0;
    loop {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = (sum >> 1) ^ (POLYNOMIAL & (sum & 1).wrapping_neg());
            bit += 1;
        }
        table[byte as usize] = sum;
        byte = match byte.checked_add(1) {
            Some(next) => next,
            None => return table,
        };
    }
}

/// Adds one byte.
#[inline(always)]
#[must_use]
pub fn add(sum: u32, byte: u8) -> u32 {
    let [low, ..] = sum.to_le_bytes();
    TABLE[usize::from(low ^ byte)] ^ (sum >> 8)
}

/// After the last byte: as it lies in a packet.
#[inline(always)]
#[must_use]
pub const fn end(sum: u32) -> [u8; 4] {
    (!sum).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> [u8; 4] {
        end(bytes.iter().fold(BEGIN, |sum, byte| add(sum, *byte)))
    }

    #[test]
    fn it_is_the_sum_of_the_rfcs_examples() {
        // RFC 3720, B.4.
        assert_eq!(of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(of(b"123456789"), 0xe306_9283u32.to_le_bytes());
    }
}
