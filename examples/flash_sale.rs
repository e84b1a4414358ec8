//! A flash sale: many buyers in several processes, one stock, nothing sold twice.
//!
//! Every purchase reads the stock, thinks for a moment, and writes it back, as the naive shop does.
//! Under the lock that is safe; without it, two buyers read the same number and both sell the same
//! item.
//!
//! ```console
//! $ cargo run --release --example flash_sale                            # a file; no server needed
//! $ cargo run --release --example flash_sale -- --unlocked              # watch it oversell
//! $ cargo run --release --example flash_sale --features redis -- --on redis://127.0.0.1/
//! $ cargo run --release --example flash_sale --features etcd -- --on etcd://127.0.0.1/
//! $ cargo run --release --example flash_sale --features zookeeper -- --on zookeeper://127.0.0.1/
//! $ cargo run --release --example flash_sale --features postgres -- --on postgres://postgres@127.0.0.1/
//! ```
//!
//! The stock is a file, whatever the lock lives on: a resource need not live where its lock does.
//!
//! The stock keeps the largest fencing token that it has seen and refuses older ones, as a resource
//! should: so even a buyer that was paused for longer than its lease cannot sell what is sold.
//!
//! Exit code 1 if more was sold than there was.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use leasehold::{FencingToken, LockClient, Mutex, Ttl};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    task::JoinSet,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Sells one stock from several processes.
#[derive(Debug, Parser)]
#[command(name = "flash_sale")]
struct Args {
    /// How many items there are [default: 500, quick: 60]
    #[arg(long)]
    stock: Option<u64>,
    /// How many processes sell [default: 4, quick: 2]
    #[arg(long)]
    processes: Option<usize>,
    /// How many buyers each process serves at a time
    #[arg(long, default_value_t = 16)]
    buyers: usize,
    /// Where the lock lives: the URL of a backend whose feature is compiled in; without it, a file
    /// in a temporary directory
    #[arg(long, value_name = "URL")]
    on: Option<String>,
    /// The TTL of the lock, in seconds
    #[arg(long, default_value_t = 10)]
    ttl: u64,
    /// Sell without the lock
    #[arg(long)]
    unlocked: bool,
    /// A small sale
    #[arg(long)]
    quick: bool,
    /// What a seller is told by the shop that starts it.
    #[arg(long, hide = true)]
    sell: Option<PathBuf>,
}

impl Args {
    fn stock(&self) -> u64 {
        self.stock.unwrap_or(if self.quick { 60 } else { 500 })
    }

    fn processes(&self) -> usize {
        self.processes.unwrap_or(if self.quick { 2 } else { 4 })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.sell {
        Some(place) => seller::run(&args, place).await.map(|()| true),
        None => shop::run(&args).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flash_sale: {error}");
            ExitCode::from(2)
        }
    }
}

/// What is left, and the largest token that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shelf {
    left: u64,
    token: u64,
}

/// Where the shelf is: a file. It can be read and written, and has nothing that would save the
/// naive shop.
#[derive(Clone, Debug)]
struct Stock(PathBuf);

impl Stock {
    fn open(place: &Path) -> Self {
        Self(place.join("stock"))
    }

    async fn read(&self) -> Result<Shelf> {
        let text = tokio::fs::read_to_string(&self.0).await?;
        let (left, token) = text
            .split_once(' ')
            .ok_or("the stock is not as it was written")?;
        Ok(Shelf {
            left: left.parse()?,
            token: token.parse()?,
        })
    }

    async fn write(&self, shelf: Shelf) -> Result<()> {
        // Written aside and renamed, so that no reader sees half of it.
        let aside = self.0.with_extension(format!("{:016x}", unique()));
        tokio::fs::write(&aside, format!("{} {}", shelf.left, shelf.token)).await?;
        tokio::fs::rename(&aside, &self.0).await?;
        Ok(())
    }
}

/// Process and count: no two files of that name.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Names this sale: two at a time on one server do not meet.
fn name_of(place: &Path) -> String {
    place.file_name().map_or_else(
        || String::from("flash-sale"),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// One of the processes that sell.
mod seller {
    use super::*;

    /// How long a buyer thinks between looking and buying.
    const THOUGHT: Duration = Duration::from_micros(200);

    pub(super) async fn run(args: &Args, place: &Path) -> Result<()> {
        let url = args
            .on
            .clone()
            .unwrap_or_else(|| format!("file:{}", place.join("locks").display()));
        let stock = Stock::open(place);
        let client = leasehold::connect(&url).await?;
        let mutex = client
            .mutex(name_of(place))
            .with_ttl(Ttl::from_secs(args.ttl)?);
        let mut buyers = JoinSet::new();
        for _ in 0..args.buyers {
            buyers.spawn(buy_all(
                stock.clone(),
                (!args.unlocked).then(|| mutex.clone()),
            ));
        }
        while let Some(done) = buyers.join_next().await {
            done??;
        }
        close(&client).await
    }

    async fn close(client: &LockClient) -> Result<()> {
        Ok(client.close().await?)
    }

    /// Buys until nothing is left, and tells the shop of each purchase.
    async fn buy_all(stock: Stock, mutex: Option<Mutex>) -> Result<()> {
        loop {
            let sold = match &mutex {
                None => buy(&stock, None).await?,
                Some(mutex) => {
                    let guard = mutex.lock().await?;
                    let token = guard.fencing_token();
                    let sold = buy(&stock, token).await;
                    guard.release().await?;
                    sold?
                }
            };
            match sold {
                Some(token) => println!("sold {token}"),
                None => return Ok(()),
            }
        }
    }

    /// Reads, thinks, writes. `None` if nothing is left, else the token that it was sold under.
    async fn buy(stock: &Stock, token: Option<FencingToken>) -> Result<Option<u64>> {
        let shelf = stock.read().await?;
        if shelf.left == 0 {
            return Ok(None);
        }
        tokio::time::sleep(THOUGHT).await;
        let token = token.map_or(0, FencingToken::get);
        if token < shelf.token {
            return Err(
                format!("token {token} is stale: the stock has seen {}", shelf.token).into(),
            );
        }
        stock
            .write(Shelf {
                left: shelf.left - 1,
                token,
            })
            .await?;
        Ok(Some(token))
    }
}

/// The process that starts the others and counts.
mod shop {
    use super::*;

    /// An overselling sale might never end: nobody needs to see more than this many times the
    /// stock.
    const ENOUGH: u64 = 4;

    pub(super) async fn run(args: &Args) -> Result<bool> {
        let place = tempfile::Builder::new().prefix("flash-sale-").tempdir()?;
        let stock = Stock::open(place.path());
        stock
            .write(Shelf {
                left: args.stock(),
                token: 0,
            })
            .await?;
        let started = Instant::now();
        let tally = sell(args, place.path()).await;
        let took = started.elapsed();
        let tally = tally?;
        Ok(tally.report(args, took))
    }

    async fn sell(args: &Args, place: &Path) -> Result<Tally> {
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut sellers = JoinSet::new();
        for number in 0..args.processes() {
            sellers.spawn(watch(number, start(place)?, tell.clone()));
        }
        drop(tell);
        // Hidden when standard error is no terminal.
        let progress = ProgressBar::new(args.stock());
        progress.set_style(ProgressStyle::with_template(
            "{bar:40} {pos} of {len} sold, {per_sec}",
        )?);
        let mut tally = Tally {
            by_process: vec![0; args.processes()],
            largest_token: 0,
        };
        while let Some((number, token)) = told.recv().await {
            tally.by_process[number] += 1;
            tally.largest_token = tally.largest_token.max(token);
            progress.inc(1);
            if tally.sold() >= ENOUGH * args.stock().max(1) {
                sellers.abort_all();
                break;
            }
        }
        progress.finish_and_clear();
        while let Some(seller) = sellers.join_next().await {
            match seller {
                Ok(done) => done?,
                // Ended by us, with its process.
                Err(ended) if ended.is_cancelled() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(tally)
    }

    /// This very program, told to sell.
    fn start(place: &Path) -> Result<Child> {
        Ok(Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .arg("--sell")
            .arg(place)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?)
    }

    /// Hears what a seller has sold, and how it ended.
    async fn watch(
        number: usize,
        mut seller: Child,
        tell: mpsc::UnboundedSender<(usize, u64)>,
    ) -> Result<()> {
        let output = seller.stdout.take().ok_or("the seller has no output")?;
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await? {
            let token = line
                .strip_prefix("sold ")
                .ok_or_else(|| format!("a seller said `{line}`"))?;
            if tell.send((number, token.parse()?)).is_err() {
                break;
            }
        }
        let status = seller.wait().await?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("a seller failed: {status}").into())
        }
    }

    /// What was sold, and where.
    struct Tally {
        by_process: Vec<u64>,
        largest_token: u64,
    }

    impl Tally {
        fn sold(&self) -> u64 {
            self.by_process.iter().sum()
        }

        /// Says how it went. Whether it went well.
        fn report(&self, args: &Args, took: Duration) -> bool {
            let (sold, stock) = (self.sold(), args.stock());
            let oversold = sold.saturating_sub(stock);
            let counts: Vec<String> = self.by_process.iter().map(ToString::to_string).collect();
            println!(
                "{} processes with {} buyers each, {}",
                args.processes(),
                args.buyers,
                if args.unlocked { "no lock" } else { "one lock" }
            );
            println!("per process: {}", counts.join(", "));
            println!("{:.0} sales per second", sold as f64 / took.as_secs_f64());
            if !args.unlocked {
                println!("largest fencing token: {}", self.largest_token);
            }
            println!("sold {sold} of {stock}, oversold {oversold}");
            // Under the lock, an item that was left would be as wrong as one too many.
            oversold == 0 && (args.unlocked || sold == stock)
        }
    }
}
