//! How fast bytes pass: frames scanned by a relay, messages decoded by the replicator.

use bytes::{BufMut, Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use synapsedb::wire::frame::{Scanner, Step, Stop, TagSet};
use synapsedb::wire::message::rows;
use synapsedb::wire::pgoutput::tuple::{Tuple, Value};
use synapsedb::wire::pgoutput::{Change, Decoder, Message};

/// One read's worth of rows, as small as those of a lookup by key.
fn small_rows() -> Bytes {
    let mut out = BytesMut::new();
    while out.len() < 32 * 1024 {
        let values = [Some(&b"4711"[..]), Some(b"1"), Some(b"-20034"), None];
        rows::row(&mut out, values.into_iter()).expect("short values fit");
    }
    out.freeze()
}

fn frames(criterion: &mut Criterion) {
    let buffer = small_rows();
    let look = TagSet::of(b"ZESNAtT");
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(buffer.len() as u64));
    group.bench_function("run over small rows", |bencher| {
        bencher.iter(|| {
            let run = Scanner::new().run(black_box(&buffer), &look);
            assert_eq!(run.map(|run| run.stop), Ok(Stop::End));
        });
    });
    group.bench_function("step over small rows", |bencher| {
        bencher.iter(|| {
            let (mut scanner, mut at) = (Scanner::new(), 0);
            while let Ok(Step::Start { here, .. }) = scanner.next(black_box(&buffer[at..])) {
                at += here;
            }
            assert_eq!(at, buffer.len());
        });
    });
    group.finish();
}

/// What pgbench's account update leaves in the stream.
fn update() -> Bytes {
    let row = Tuple::of(&[
        Value::Text(b"4711"),
        Value::Text(b"1"),
        Value::Text(b"-20034"),
        Value::Text(&[b' '; 84]),
    ]);
    let row = row.expect("short values fit");
    let mut out = BytesMut::from(&b"U\0\0\x40\x0EN\0\x04"[..]);
    out.put_slice(row.raw());
    out.freeze()
}

fn pgoutput(criterion: &mut Criterion) {
    let update = update();
    let mut group = criterion.benchmark_group("pgoutput");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode an update", |bencher| {
        let mut decoder = Decoder::new();
        bencher.iter(|| decoder.decode(black_box(&update)));
    });
    group.bench_function("decode an update and read its values", |bencher| {
        let mut decoder = Decoder::new();
        bencher.iter(|| match decoder.decode(black_box(&update)) {
            Ok(Message::Change {
                change: Change::Update { new, .. },
                ..
            }) => new.iter().filter(|value| *value != Value::Null).count(),
            _ => 0,
        });
    });
    group.finish();
}

criterion_group!(benches, frames, pgoutput);
criterion_main!(benches);
