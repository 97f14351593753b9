//! How fast ranks on one machine broadcast, gather and sum, beside a plain copy of the same bytes over as many TCP
//! connections at once: `cargo run --release -p collective --example collective_speed -- 75000000 1000000000`.

use collective::{Collective, SubtreeSums, TreePlan, even_bounds, ordered_sum};
use ranks::{Security, groups, listeners, on_all};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

#[expect(dead_code, reason = "the tests use the rest of it")]
#[path = "../tests/ranks/mod.rs"]
mod ranks;

/// Bytes written or read at once by the plain copy.
const PIECE: usize = 1 << 20;

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .map(|size| size.parse().unwrap_or_else(|_| panic!("{size:?} is no number of bytes")))
        .collect();
    println!("| bytes | ranks | operation | plain copy (s) | in the clear (s) | ratio | TLS (s) | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    for size in sizes.iter().map(|size| size / 4 * 4) {
        for n_ranks in [2, 4, 8] {
            let pairs = n_ranks * (n_ranks - 1);
            let gathered = || raw(pairs, size / n_ranks);
            report(size, n_ranks, "broadcast", raw(n_ranks - 1, size), broadcast);
            report(size, n_ranks, "all-gather", gathered(), all_gather);
            // Every rank's slices go to their owners, and the sums of the slices to all.
            report(size, n_ranks, "ordered sum", gathered() + gathered(), sum);
        }
    }
}

fn report(
    size: usize,
    n_ranks: usize,
    name: &str,
    raw: Duration,
    run: fn(usize, usize, Security) -> Duration,
) {
    let seconds = |time: Duration| time.as_secs_f64();
    let [plain, tls] = Security::ALL.map(|security| run(n_ranks, size, security));
    println!(
        "| {size} | {n_ranks} | {name} | {:.3} | {:.3} | {:.0} % | {:.3} | {:.0} % |",
        seconds(raw),
        seconds(plain),
        100.0 * seconds(raw) / seconds(plain),
        seconds(tls),
        100.0 * seconds(raw) / seconds(tls),
    );
}

fn late() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// The time of `work` on the slowest rank, after all have made their `input`.
fn timed<T>(
    n_ranks: usize,
    security: Security,
    input: impl Fn(usize) -> T + Sync,
    work: impl Fn(&mut dyn Collective, T) + Sync,
) -> Duration {
    let times = on_all(groups(n_ranks, security), |group| {
        let input = input(group.rank());
        group.barrier(late()).expect("all are ready");
        let start = Instant::now();
        work(group, input);
        start.elapsed()
    });
    times.into_iter().max().unwrap_or_default()
}

fn broadcast(n_ranks: usize, size: usize, security: Security) -> Duration {
    let work = |group: &mut dyn Collective, mut bytes: Vec<u8>| {
        group.broadcast(0, &mut bytes, late()).expect("a broadcast");
        assert!(bytes[0] == 1 && bytes[size - 1] == 1, "the root's bytes");
    };
    timed(n_ranks, security, |rank| vec![1 + rank as u8; size], work)
}

fn all_gather(n_ranks: usize, size: usize, security: Security) -> Duration {
    let bounds = even_bounds(size, n_ranks);
    let work = |group: &mut dyn Collective, mut bytes: Vec<u8>| {
        group.all_gather(&mut bytes, &bounds, late()).expect("an all-gather");
        assert!(bytes[0] == 1 && bytes[size - 1] == n_ranks as u8, "the others' bytes");
    };
    timed(n_ranks, security, |rank| vec![1 + rank as u8; size], work)
}

/// With as many shards as ranks.
fn sum(n_ranks: usize, size: usize, security: Security) -> Duration {
    let plan = TreePlan::even(n_ranks, n_ranks).expect("a plan");
    let input = |rank: usize| {
        let mut sums = SubtreeSums::new(rank, size / 4);
        sums.add(&plan, rank, vec![1.0; size / 4]).expect("its shard");
        sums
    };
    let work = |group: &mut dyn Collective, sums: SubtreeSums| {
        let sum = ordered_sum(group, &plan, sums, late()).expect("a sum");
        assert!(sum[0] == n_ranks as f32 && sum[size / 4 - 1] == n_ranks as f32, "the sum of ones");
    };
    timed(n_ranks, security, input, work)
}

/// The time to copy so many bytes over each of so many connections at once, by blocking threads.
fn raw(n_connections: usize, size: usize) -> Duration {
    let (listeners, addresses) = listeners(1);
    let source = vec![1; size];
    let start = Barrier::new(2 * n_connections);
    let copies = thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 0..n_connections {
            let mut to = TcpStream::connect(addresses[0]).expect("connected");
            let (mut from, _) = listeners[0].accept().expect("connected");
            let (source, start) = (&source, &start);
            scope.spawn(move || {
                start.wait();
                source.chunks(PIECE).for_each(|piece| to.write_all(piece).expect("written"));
            });
            readers.push(scope.spawn(move || {
                let mut place = vec![2; size];
                start.wait();
                let began = Instant::now();
                place.chunks_mut(PIECE).for_each(|piece| from.read_exact(piece).expect("read"));
                began.elapsed()
            }));
        }
        readers.into_iter().map(|reader| reader.join().expect("no panic")).collect::<Vec<_>>()
    });
    copies.into_iter().max().unwrap_or_default()
}
