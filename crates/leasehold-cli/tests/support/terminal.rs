//! A pseudo-terminal for one test.

use std::{
    cell::RefCell,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    process::{Child, Command, ExitStatus},
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use super::until;

/// A pseudo-terminal, and a `bash` script that leads the session on it.
pub struct Terminal {
    keyboard: File,
    screen: RefCell<Vec<u8>>,
    script: Child,
}

impl Terminal {
    pub fn run(script: &str) -> Self {
        let keyboard =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        fcntl_setfl(
            &keyboard,
            fcntl_getfl(&keyboard).unwrap() | OFlags::NONBLOCK,
        )
        .unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let open = || {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .custom_flags(OFlags::NOCTTY.bits().cast_signed());
            options.open(OsStr::from_bytes(name.to_bytes())).unwrap()
        };
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "bash", "--norc", "-c", script])
            .env_remove("LEASEHOLD_URL");
        let script = command
            .stdin(open())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap();
        Self {
            keyboard: File::from(keyboard),
            screen: RefCell::default(),
            script,
        }
    }

    /// Starts an interactive shell and types this line.
    pub fn shell(line: &str) -> Self {
        let terminal = Self::run("exec bash --norc --noprofile -i");
        terminal.press(&format!("{line}\r"));
        terminal
    }

    /// Asks the shell for the code of its last line, which must have ended or be about to end.
    pub fn code(&self) -> u32 {
        self.press("echo code=$?\r");
        self.number("code")
    }

    /// Presses keys.
    pub fn press(&self, keys: &str) {
        (&self.keyboard).write_all(keys.as_bytes()).unwrap();
    }

    /// Returns the text that was shown until now.
    pub fn screen(&self) -> String {
        let mut screen = self.screen.borrow_mut();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = (&self.keyboard).read(&mut bytes) {
            screen.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8_lossy(&screen).into_owned()
    }

    /// Waits until `text` is shown.
    pub fn shows(&self, text: &str) {
        let mut screen = String::new();
        let shown = super::within_timeout(|| {
            screen = self.screen();
            screen.contains(text)
        });
        assert!(shown, "no `{text}` on the screen: {screen}");
    }

    /// Waits until `name=NUMBER` is shown, and returns the number.
    pub fn number(&self, name: &str) -> u32 {
        let (begin, mut screen, mut number) = (format!("{name}="), String::new(), None);
        // The screen may show the command line first.
        let parse = |rest: &str| rest.split_once(['\r', '\n'])?.0.parse().ok();
        super::within_timeout(|| {
            screen = self.screen();
            number = screen.split(&begin).skip(1).find_map(parse);
            number.is_some()
        });
        number.unwrap_or_else(|| panic!("no number of `{begin}` on the screen: {screen}"))
    }

    /// Waits until the script has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the script on the terminal ends", || {
            self.screen();
            status = self.script.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Closes the terminal, as a closed window or a cut connection does.
    pub fn hang_up(self) -> Child {
        let Self {
            keyboard, script, ..
        } = self;
        drop(keyboard);
        script
    }
}
