//! Transfers between accounts: eight processes move money between five accounts, some of them are
//! killed at random, and no money is lost or made.
//!
//! Each account is a file of its own, so that a transfer changes two files, one after the other.
//! A teller locks both accounts with `client.all`. It names them in the order of the transfer, and
//! no two tellers ever wait for each other.
//!
//! ```console
//! $ cargo run --release -p leasehold-examples --example transfer
//! $ cargo run --release -p leasehold-examples --example transfer -- --unlocked
//! $ cargo run --release -p leasehold-examples --example transfer --features redis -- \
//! >     --url redis://127.0.0.1/
//! ```
//!
//! Without `--url` the locks are files and need no server. With `--unlocked` there are no locks,
//! and money is lost or made.
//!
//! A teller that is killed leaves its transfer unfinished, if it has withdrawn the money and has
//! not paid it in yet. A lock does not undo that. The withdrawal therefore notes what is due to
//! whom in the same write. The next teller that locks the account finishes the transfer, and for
//! this it locks both accounts. A deposit notes the number of the transfer, so that it counts once.
//!
//! The auditor locks all accounts as a reader and checks the sum while the tellers work. The exit
//! code is 1 if the sum ever differs.

use std::{
    error::Error,
    fmt,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use leasehold::{AllGuard, FencingToken, LockClient, Ttl};
use leasehold_examples::start_self;
use tokio::{process::Child, sync::mpsc, task::JoinSet};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ACCOUNTS: usize = 5;
const TELLERS: usize = 8;
/// The money in each account at the start.
const BALANCE: u64 = 1_000;

/// Moves money between accounts from several processes.
#[derive(Debug, Parser)]
#[command(name = "transfer")]
struct Args {
    /// URL of the locks' backend, whose feature must be compiled in [default: files in a temporary
    /// directory]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Number of tellers that are killed [default: 12, with --quick: 4]
    #[arg(long)]
    kills: Option<u32>,
    /// Transfer without locks
    #[arg(long)]
    unlocked: bool,
    /// Kill few tellers
    #[arg(long)]
    quick: bool,
    /// Transfer between the accounts in this folder; used by the bank to start a teller
    #[arg(long, hide = true)]
    teller: Option<PathBuf>,
}

impl Args {
    fn kills(&self) -> u32 {
        self.kills.unwrap_or(if self.quick { 4 } else { 12 })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.teller {
        Some(place) => teller::run(&args, place).await.map(|()| true),
        None => bank::run(&args).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("transfer: {error}");
            ExitCode::from(2)
        }
    }
}

/// The content of an account.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    balance: u64,
    /// The largest fencing token that has written it.
    token: u64,
    /// The sum that was withdrawn and is due to another account.
    due: Option<Due>,
    /// The number of the last transfer from each account that was paid in.
    paid_in: [u64; ACCOUNTS],
}

/// Money on its way to another account.
#[derive(Clone, Copy, Debug)]
struct Due {
    to: usize,
    amount: u64,
    /// The number of the transfer.
    number: u64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Due { to, amount, number } = self.due.unwrap_or(Due {
            to: 0,
            amount: 0,
            number: 0,
        });
        write!(f, "{} {} {to} {amount} {number}", self.balance, self.token)?;
        self.paid_in
            .iter()
            .try_for_each(|paid| write!(f, " {paid}"))
    }
}

/// The accounts: a folder with a file for each. Reads and writes are separate, so they do not
/// prevent lost updates, and a change of two accounts is two writes.
#[derive(Clone, Debug)]
struct Ledger(PathBuf);

impl Ledger {
    fn read(&self, account: usize) -> Result<Account> {
        let text = std::fs::read_to_string(self.file(account))?;
        let numbers = text
            .split(' ')
            .map(|number| Ok(number.parse()?))
            .collect::<Result<Vec<u64>>>()?;
        let [balance, token, to, amount, number, paid_in @ ..] = numbers.as_slice() else {
            return Err("the file of an account is damaged".into());
        };
        Ok(Account {
            balance: *balance,
            token: *token,
            due: (*number > 0).then_some(Due {
                to: usize::try_from(*to)?,
                amount: *amount,
                number: *number,
            }),
            paid_in: paid_in.try_into()?,
        })
    }

    /// Writes an account. Refuses a token that is smaller than that of the last write.
    fn write(&self, at: usize, mut account: Account, token: u64) -> Result<()> {
        let last = self.read(at).map_or(0, |account| account.token);
        if token < last {
            return Err(format!("the token {token} is stale: the account has seen {last}").into());
        }
        account.token = token;
        // A rename is atomic, so no reader sees a partial file.
        let temporary = self.0.join(format!("new-{at}-{}", std::process::id()));
        std::fs::write(&temporary, account.to_string())?;
        std::fs::rename(&temporary, self.file(at))?;
        Ok(())
    }

    /// Returns the sum of all accounts, with what is on its way.
    fn sum(&self) -> Result<u64> {
        let accounts = (0..ACCOUNTS)
            .map(|at| self.read(at))
            .collect::<Result<Vec<_>>>()?;
        let on_its_way = accounts.iter().enumerate().filter_map(|(from, account)| {
            let due = account.due?;
            (accounts[due.to].paid_in[from] != due.number).then_some(due.amount)
        });
        Ok(on_its_way.sum::<u64>() + accounts.iter().map(|account| account.balance).sum::<u64>())
    }

    fn file(&self, account: usize) -> PathBuf {
        self.0.join(format!("account-{account}"))
    }

    /// Returns the name of the lock, which differs between concurrent runs on one server.
    fn key(&self, account: usize) -> String {
        let run = self.0.file_name().unwrap_or_default().to_string_lossy();
        format!("{run}/account/{account}")
    }
}

/// Connects to the backend of the locks.
async fn connect(args: &Args, place: &Path) -> Result<(LockClient, Ttl)> {
    let url = args
        .url
        .clone()
        .unwrap_or_else(|| format!("file:{}", place.join("locks").display()));
    let client = leasehold::connect(&url).await?;
    // The accounts of a killed teller are locked for this long, on most servers.
    let ttl = Ttl::from_secs(2)?.max(client.capabilities().min_ttl);
    Ok((client, ttl))
}

/// A process that transfers money until it is killed.
mod teller {
    use super::*;

    /// The time between the two writes of a transfer.
    const DELAY: Duration = Duration::from_millis(2);
    /// The pause after a failure.
    const PAUSE: Duration = Duration::from_millis(100);

    pub(super) async fn run(args: &Args, place: &Path) -> Result<()> {
        let ledger = Ledger(place.to_owned());
        let (client, ttl) = connect(args, place).await?;
        loop {
            let (from, to) = (random(ACCOUNTS as u64), random(ACCOUNTS as u64 - 1));
            let (from, to) = (from as usize, (from + 1 + to) as usize % ACCOUNTS);
            let done = if args.unlocked {
                transfer(&ledger, None, from, to).await
            } else {
                transfer_locked(&ledger, &client, ttl, from, to).await
            };
            if let Err(error) = done {
                // A lock was lost, or the backend failed. The next teller finishes the transfer.
                eprintln!("a transfer is left unfinished: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Locks both accounts and moves money, or finishes a transfer that a killed teller has left.
    async fn transfer_locked(
        ledger: &Ledger,
        client: &LockClient,
        ttl: Ttl,
        from: usize,
        to: usize,
    ) -> Result<()> {
        let mut accounts = [from, to];
        loop {
            let keys = accounts.map(|account| ledger.key(account));
            let guard = client.all(keys).with_ttl(ttl).lock().await?;
            let mut unfinished = None;
            for account in accounts {
                unfinished = unfinished.or(ledger.read(account)?.due.map(|due| (account, due)));
            }
            match unfinished {
                None if accounts == [from, to] => {
                    transfer(ledger, Some(&guard), from, to).await?;
                }
                // Another teller has finished it meanwhile.
                None => {}
                Some((from, due)) if accounts.contains(&due.to) => {
                    pay_in(ledger, Some(&guard), from, due)?;
                    println!("finished");
                }
                Some((from, due)) => {
                    // The money is due to an account that is not locked yet.
                    guard.release().await?;
                    accounts = [from, due.to];
                    continue;
                }
            }
            guard.release().await?;
            return Ok(());
        }
    }

    /// Moves a random amount. Both accounts are locked and have no unfinished transfer.
    async fn transfer(
        ledger: &Ledger,
        guard: Option<&AllGuard>,
        from: usize,
        to: usize,
    ) -> Result<()> {
        let mut account = ledger.read(from)?;
        let due = Due {
            to,
            amount: random(account.balance / 2 + 1),
            number: 1 + random(u64::MAX - 1),
        };
        account.balance -= due.amount;
        account.due = Some(due);
        ledger.write(from, account, token(ledger, guard, from))?;
        tokio::time::sleep(DELAY).await;
        pay_in(ledger, guard, from, due)?;
        println!("transferred");
        Ok(())
    }

    /// Pays in what is due, once.
    fn pay_in(ledger: &Ledger, guard: Option<&AllGuard>, from: usize, due: Due) -> Result<()> {
        let mut account = ledger.read(due.to)?;
        if account.paid_in[from] != due.number {
            account.balance += due.amount;
            account.paid_in[from] = due.number;
            ledger.write(due.to, account, token(ledger, guard, due.to))?;
        }
        let mut account = ledger.read(from)?;
        account.due = None;
        ledger.write(from, account, token(ledger, guard, from))
    }

    /// Returns the fencing token of an account's lock.
    fn token(ledger: &Ledger, guard: Option<&AllGuard>, account: usize) -> u64 {
        let token = guard.and_then(|guard| guard.fencing_token(ledger.key(account)));
        token.map_or(0, FencingToken::get)
    }
}

/// Returns a random number below `limit`.
fn random(limit: u64) -> u64 {
    RandomState::new().hash_one(Instant::now()) % limit
}

/// The process that starts tellers, kills them, and audits the accounts.
mod bank {
    use super::*;

    /// The time between two kills, in which the sum is audited.
    const BETWEEN_KILLS: Duration = Duration::from_millis(150);
    /// Only a failure of all tellers takes longer.
    const LONGEST_START: Duration = Duration::from_secs(60);

    pub(super) async fn run(args: &Args) -> Result<bool> {
        let place = tempfile::Builder::new().prefix("transfer-").tempdir()?;
        let ledger = Ledger(place.path().to_owned());
        for account in 0..ACCOUNTS {
            let full = Account {
                balance: BALANCE,
                ..Account::default()
            };
            ledger.write(account, full, 0)?;
        }
        let (client, ttl) = connect(args, place.path()).await?;
        let (sender, mut reports) = mpsc::unbounded_channel();
        let mut listeners = JoinSet::new();
        let mut tellers = Vec::new();
        for _ in 0..TELLERS {
            tellers.push(start(place.path(), &sender, &mut listeners)?);
        }
        // A teller is at work, so that the kills meet transfers.
        let first = tokio::time::timeout(LONGEST_START, reports.recv()).await;
        first?.ok_or("no teller works")?;
        let mut sums = Vec::new();
        for _ in 0..args.kills() {
            tokio::time::sleep(BETWEEN_KILLS).await;
            let killed = random(TELLERS as u64) as usize;
            tellers[killed].kill().await?;
            tellers[killed] = start(place.path(), &sender, &mut listeners)?;
            if !args.unlocked {
                sums.push(audit(&ledger, &client, ttl).await?);
            }
        }
        for teller in &mut tellers {
            teller.kill().await?;
        }
        sums.push(audit(&ledger, &client, ttl).await?);
        client.close().await?;
        drop(sender);
        let (mut transferred, mut finished) = (1, 0);
        while let Some(report) = reports.recv().await {
            match report.as_str() {
                "transferred" => transferred += 1,
                "finished" => finished += 1,
                other => return Err(format!("unexpected output of a teller: `{other}`").into()),
            }
        }
        println!("{TELLERS} tellers, {} killed", args.kills());
        println!("{transferred} transfers, {finished} of them finished by another teller");
        let expected = BALANCE * ACCOUNTS as u64;
        println!("{} audits: {sums:?}, expected {expected}", sums.len());
        Ok(sums.iter().all(|sum| *sum == expected))
    }

    /// Returns the sum of all accounts at one moment.
    async fn audit(ledger: &Ledger, client: &LockClient, ttl: Ttl) -> Result<u64> {
        let keys = (0..ACCOUNTS).map(|account| ledger.key(account));
        let all = if client.capabilities().shared {
            client.all::<String>([]).with_shared(keys)
        } else {
            client.all(keys)
        };
        let all = all.with_ttl(ttl);
        all.run(async |_| ledger.sum()).await?
    }

    /// Starts a teller: this program with the option `--teller`. Its reports go to `sender`.
    fn start(
        place: &Path,
        sender: &mpsc::UnboundedSender<String>,
        listeners: &mut JoinSet<()>,
    ) -> Result<Child> {
        let arguments = std::env::args_os().skip(1);
        let (teller, mut lines) = start_self(arguments.chain(["--teller".into(), place.into()]))?;
        let sender = sender.clone();
        listeners.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // The bank has ended if nobody receives.
                drop(sender.send(line));
            }
        });
        Ok(teller)
    }
}
