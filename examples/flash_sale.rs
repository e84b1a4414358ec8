//! A flash sale: many buyers in several processes buy from one stock, and no item is sold twice.
//!
//! Every purchase reads the stock, waits for a moment, and writes the stock back. Under the lock
//! this is safe. Without it, two buyers read the same number and sell the same item.
//!
//! ```console
//! $ cargo run --release -p leasehold-examples --example flash_sale
//! $ cargo run --release -p leasehold-examples --example flash_sale -- --unlocked
//! $ cargo run --release -p leasehold-examples --example flash_sale --features redis -- \
//! >     --url redis://127.0.0.1/
//! $ cargo run --release -p leasehold-examples --example flash_sale --features etcd -- \
//! >     --url etcd://127.0.0.1/
//! $ cargo run --release -p leasehold-examples --example flash_sale --features zookeeper -- \
//! >     --url zookeeper://127.0.0.1/
//! $ cargo run --release -p leasehold-examples --example flash_sale --features postgres -- \
//!       --url postgres://postgres@127.0.0.1/
//! ```
//!
//! Without `--url` the lock is a file and needs no server. With `--unlocked` there is no lock, and
//! the shop oversells.
//!
//! The stock is always a file, because a resource and its lock need not be in the same place. It
//! stores the largest fencing token that it has seen and rejects smaller ones, as a resource
//! should. So even a buyer that was paused for longer than its TTL cannot sell an item twice.
//!
//! The exit code is 1 if more items were sold than there were.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use leasehold::{FencingToken, LockClient, Mutex, Ttl};
use leasehold_examples::{Output, start_self};
use tokio::{process::Child, sync::mpsc, task::JoinSet};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Sells one stock from several processes.
#[derive(Debug, Parser)]
#[command(name = "flash_sale")]
struct Args {
    /// Number of items [default: 500, with --quick: 60]
    #[arg(long)]
    stock: Option<u64>,
    /// Number of processes that sell [default: 4, with --quick: 2]
    #[arg(long)]
    processes: Option<usize>,
    /// Number of concurrent buyers of each process
    #[arg(long, default_value_t = 16)]
    buyers: usize,
    /// URL of the lock's backend, whose feature must be compiled in [default: a file in a temporary
    /// directory]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// TTL of the lock in seconds
    #[arg(long, default_value_t = 10)]
    ttl: u64,
    /// Sell without the lock
    #[arg(long)]
    unlocked: bool,
    /// Run a small sale
    #[arg(long)]
    quick: bool,
    /// Sell from the stock in this folder; used by the shop to start a seller
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

/// The content of the stock: the number of items left and the largest token that has written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shelf {
    left: u64,
    token: u64,
}

/// The file of the stock. Reads and writes are separate, so it does not prevent lost updates.
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
            .ok_or("the file of the stock is damaged")?;
        Ok(Shelf {
            left: left.parse()?,
            token: token.parse()?,
        })
    }

    async fn write(&self, shelf: Shelf) -> Result<()> {
        // A rename is atomic, so no reader sees a partial file.
        let temporary = self.0.with_extension(format!("{:016x}", unique()));
        tokio::fs::write(&temporary, format!("{} {}", shelf.left, shelf.token)).await?;
        tokio::fs::rename(&temporary, &self.0).await?;
        Ok(())
    }
}

/// Returns a number that no other call in any process on this host returns.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Returns the name of the lock, which differs between concurrent sales on one server.
fn name_of(place: &Path) -> String {
    place.file_name().map_or_else(
        || String::from("flash-sale"),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// A process that sells items.
mod seller {
    use super::*;

    /// The time between the read and the write of a purchase.
    const DELAY: Duration = Duration::from_micros(200);

    pub(super) async fn run(args: &Args, place: &Path) -> Result<()> {
        let url = args
            .url
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

    /// Buys until nothing is left, and reports each purchase to the shop.
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

    /// Buys one item. Returns the fencing token of the purchase, or `None` if nothing is left.
    async fn buy(stock: &Stock, token: Option<FencingToken>) -> Result<Option<u64>> {
        let shelf = stock.read().await?;
        if shelf.left == 0 {
            return Ok(None);
        }
        tokio::time::sleep(DELAY).await;
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

/// The process that starts the sellers and counts the sold items.
mod shop {
    use super::*;

    /// The sale stops when this many times the stock is sold, because an overselling sale might
    /// never end.
    const OVERSOLD_LIMIT: u64 = 4;

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
        let (sender, mut sales) = mpsc::unbounded_channel();
        let mut sellers = JoinSet::new();
        for number in 0..args.processes() {
            sellers.spawn(watch(number, start(place)?, sender.clone()));
        }
        drop(sender);
        // The bar is hidden if standard error is not a terminal.
        let progress = ProgressBar::new(args.stock());
        progress.set_style(ProgressStyle::with_template(
            "{bar:40} {pos} of {len} sold, {per_sec}",
        )?);
        let mut tally = Tally {
            by_process: vec![0; args.processes()],
            largest_token: 0,
        };
        while let Some((number, token)) = sales.recv().await {
            tally.by_process[number] += 1;
            tally.largest_token = tally.largest_token.max(token);
            progress.inc(1);
            if tally.sold() >= OVERSOLD_LIMIT * args.stock().max(1) {
                sellers.abort_all();
                break;
            }
        }
        progress.finish_and_clear();
        while let Some(seller) = sellers.join_next().await {
            match seller {
                Ok(done) => done?,
                // The shop has stopped this seller.
                Err(ended) if ended.is_cancelled() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(tally)
    }

    /// Starts a seller: this program with the option `--sell`.
    fn start(place: &Path) -> io::Result<(Child, Output)> {
        let arguments = std::env::args_os().skip(1);
        start_self(arguments.chain(["--sell".into(), place.into()]))
    }

    /// Forwards the sales of a seller, and returns an error if the seller fails.
    async fn watch(
        number: usize,
        (mut seller, mut lines): (Child, Output),
        sales: mpsc::UnboundedSender<(usize, u64)>,
    ) -> Result<()> {
        while let Some(line) = lines.next_line().await? {
            let token = line
                .strip_prefix("sold ")
                .ok_or_else(|| format!("unexpected output of a seller: `{line}`"))?;
            if sales.send((number, token.parse()?)).is_err() {
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

    /// The number of sold items per process, and the largest token.
    struct Tally {
        by_process: Vec<u64>,
        largest_token: u64,
    }

    impl Tally {
        fn sold(&self) -> u64 {
            self.by_process.iter().sum()
        }

        /// Prints the result. Returns whether it is correct.
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
            // Under the lock, all items must be sold.
            oversold == 0 && (args.unlocked || sold == stock)
        }
    }
}
