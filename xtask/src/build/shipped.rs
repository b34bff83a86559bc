//! What must be true of a program before it is shipped: for the right processor, static, with its kernel
//! object inside, without a path of the machine it was built on, and it starts.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use object::{
    Endianness, elf,
    read::elf::{FileHeader, ProgramHeader},
};

use crate::{processor::Processor, run};

/// The program, and what it is to be compared with.
pub(super) struct Shipped<'a> {
    pub(super) program: &'a Path,
    pub(super) processor: Processor,
    /// The kernel object it embeds.
    pub(super) object: &'a Path,
    /// Places on this machine.
    pub(super) places: &'a [&'a Path],
}

impl Shipped<'_> {
    pub(super) fn prove(&self) -> Result<()> {
        let content = read(self.program)?;
        self.prove_content(&content, &read(self.object)?)
            .with_context(|| self.program.display().to_string())?;
        let said = self.start()?;
        ensure!(
            said.trim_end() == format!("lb-agent {}", env!("CARGO_PKG_VERSION")),
            "{} --version says {said:?}",
            self.program.display()
        );
        Ok(())
    }

    fn prove_content(&self, content: &[u8], object: &[u8]) -> Result<()> {
        ensure!(
            machine(content)? == self.machine(),
            "is not for {}",
            self.processor
        );
        ensure!(is_static(content)?, "asks for a dynamic loader");
        ensure!(
            contains(content, object),
            "does not embed the kernel object"
        );
        for place in self.places {
            let place = place.display().to_string();
            ensure!(
                !contains(content, place.as_bytes()),
                "holds {place}, a path of this machine"
            );
        }
        Ok(())
    }

    fn machine(&self) -> u16 {
        match self.processor {
            Processor::X86_64 => elf::EM_X86_64,
            Processor::Aarch64 => elf::EM_AARCH64,
        }
    }

    fn start(&self) -> Result<String> {
        let mut command = match self.processor.is_own() {
            true => Command::new(self.program),
            false => {
                let mut emulator = Command::new(self.processor.emulator());
                emulator.arg(self.program);
                emulator
            }
        };
        command.arg("--version");
        run::text(command)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn machine(program: &[u8]) -> Result<u16> {
    let header = elf::FileHeader64::<Endianness>::parse(program)?;
    Ok(header.e_machine(header.endian()?))
}

fn is_static(program: &[u8]) -> Result<bool> {
    let header = elf::FileHeader64::<Endianness>::parse(program)?;
    let endian = header.endian()?;
    let mut segments = header.program_headers(endian, program)?.iter();
    Ok(!segments.any(|segment| segment.p_type(endian) == elf::PT_INTERP))
}

fn contains(content: &[u8], part: &[u8]) -> bool {
    content
        .windows(part.len())
        .any(|window| window[0] == part[0] && window == part)
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    /// The test itself is a program: dynamic, for this machine, and full of its paths.
    fn fault(change: impl FnOnce(&mut Shipped<'_>), object: &[u8]) -> String {
        let own = env::current_exe().unwrap();
        let mut shipped = Shipped {
            program: &own,
            processor: Processor::own().unwrap(),
            object: &own,
            places: &[],
        };
        change(&mut shipped);
        let content = fs::read(&own).unwrap();
        let proof = shipped.prove_content(&content, object);
        proof.unwrap_err().to_string()
    }

    #[test]
    fn a_program_for_another_processor_is_no_program_for_this_one() {
        let other = match Processor::own().unwrap() {
            Processor::X86_64 => Processor::Aarch64,
            Processor::Aarch64 => Processor::X86_64,
        };
        let said = fault(|shipped| shipped.processor = other, b"");
        assert_eq!(said, format!("is not for {other}"));
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        assert_eq!(fault(|_| {}, b"\x7fELF"), "asks for a dynamic loader");
    }

    #[test]
    fn what_a_program_holds_is_found_wherever_it_lies() {
        assert!(contains(b"a path: /home/me", b"/home/me"));
        assert!(contains(b"object", b"object"));
        assert!(!contains(b"a path: /home/them", b"/home/me"));
    }
}
