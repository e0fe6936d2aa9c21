//! What the replicator spends on each transaction by itself: putting it together, and counting who has it.

use std::collections::BTreeMap;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use synapsedb::engine::confirm::{Confirmer, Standing};
use synapsedb::ids::{Epoch, Lsn, NodeId};
use synapsedb::node::assemble::{Assembled, Assembler};

/// What `PostgreSQL` 16 sent for two of pgbench's TPC-B-like transactions, a message a line.
const CAPTURED: &str = include_str!("tpcb-like.pgoutput.hex");

const STREAM: usize = 0;
const QUICK: NodeId = NodeId(1);
const SLOW: NodeId = NodeId(2);
/// The bytes of WAL that each transaction takes here.
const STRIDE: u64 = 600;

/// Three nodes; the slow follower is `behind` units behind.
fn confirmer(behind: u64) -> (Confirmer, u64) {
    let followers = [(QUICK, Standing::InSync), (SLOW, Standing::InSync)];
    let mut confirmer = Confirmer::new(3, followers);
    let places = BTreeMap::from([(QUICK, Lsn(1)), (SLOW, Lsn(1))]);
    confirmer.add_stream(STREAM, Lsn(1), &places);
    for unit in 1..=behind {
        confirmer.decoded_unit(STREAM, commit(unit), end(unit));
        confirmer.applied(STREAM, QUICK, end(unit));
    }
    confirmer.report();
    (confirmer, behind)
}

fn commit(unit: u64) -> Lsn {
    Lsn(unit * STRIDE)
}

fn end(unit: u64) -> Lsn {
    Lsn(unit * STRIDE + 48)
}

fn confirming(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("confirm");
    group.throughput(Throughput::Elements(1));
    for behind in [8, 1000] {
        let (mut confirmer, mut unit) = confirmer(behind);
        group.bench_function(
            format!("a unit through 3 nodes, {behind} pending"),
            |bencher| {
                bencher.iter(|| {
                    unit += 1;
                    confirmer.decoded_unit(STREAM, commit(unit), end(unit));
                    confirmer.applied(STREAM, QUICK, end(unit));
                    let written = confirmer.report();
                    confirmer.applied(STREAM, SLOW, end(unit - behind));
                    black_box((written, confirmer.report()))
                });
            },
        );
    }
    group.bench_function(
        "1000 units, none of them anywhere else, confirmed at once",
        |bencher| {
            bencher.iter_batched(
                || {
                    let (mut confirmer, _) = confirmer(0);
                    for unit in 1..=1000 {
                        confirmer.decoded_unit(STREAM, commit(unit), end(unit));
                    }
                    confirmer
                },
                |mut confirmer| {
                    confirmer.applied(STREAM, QUICK, end(1000));
                    confirmer.applied(STREAM, SLOW, end(1000));
                    confirmer.report()
                },
                BatchSize::SmallInput,
            );
        },
    );
    group.finish();
}

fn captured() -> Vec<Bytes> {
    let byte = |pair: &[u8]| {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).expect("hex digits");
        u8::try_from(digit(0) * 16 + digit(1)).expect("two digits are a byte")
    };
    let message = |line: &str| line.as_bytes().chunks(2).map(byte).collect::<Bytes>();
    CAPTURED.lines().map(message).collect()
}

fn assembling(criterion: &mut Criterion) {
    let messages = captured();
    let second = messages.iter().rposition(|message| message[0] == b'B');
    let (first, again) = messages.split_at(second.expect("two transactions"));
    let mut assembler = Assembler::new(vec![(Epoch(1), Lsn(0))], std::env::temp_dir());
    for message in first {
        assembler.take(message).expect("as it was captured");
    }
    let bytes: usize = again.iter().map(Bytes::len).sum();
    let mut group = criterion.benchmark_group("assemble");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("a TPC-B-like transaction", |bencher| {
        bencher.iter(|| {
            let mut last = None;
            for message in again {
                last = assembler
                    .take(black_box(message))
                    .expect("as it was captured");
            }
            assert!(matches!(last, Some(Assembled::Unit(_))));
            last
        });
    });
    group.finish();
}

criterion_group!(benches, confirming, assembling);
criterion_main!(benches);
