//! What classifying a text costs: with its facts in the cache, without, and asking a catalog about it.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use synapsedb::sql::catalog::{Catalog, CatalogRow};
use synapsedb::sql::lexer;
use synapsedb::sql::pieces;
use synapsedb::sql::statement::{Facts, FactsCache};

const SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1;";
const JOIN: &str = "SELECT o.id, o.total, c.name, count(*) FILTER (WHERE i.qty > 1) AS many \
    FROM orders o JOIN customers c ON c.id = o.customer_id LEFT JOIN items i ON i.order_id = o.id \
    WHERE o.created_at >= now() - interval '7 days' AND c.region IN ('eu', 'us') \
    GROUP BY o.id, c.name HAVING sum(i.qty * i.price) > 100 ORDER BY o.created_at DESC LIMIT 50";
const UPDATE: &str = "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2";

/// The names of a middling database.
fn catalog() -> Catalog {
    let row = |kind: &str, name: String| CatalogRow {
        kind: kind.to_owned(),
        schema: (kind == "relation").then(|| "public".to_owned()),
        name,
        ..CatalogRow::default()
    };
    let mut rows: Vec<CatalogRow> = (0..3000)
        .map(|n| row("function", format!("f{n}")))
        .collect();
    rows.extend((0..500).map(|n| row("relation", format!("t{n}"))));
    for name in ["now", "count", "sum"] {
        rows.push(row("function", name.to_owned()));
    }
    for name in ["=", ">", ">=", "-", "*", "+"] {
        rows.push(row("operator", name.to_owned()));
    }
    for name in ["pgbench_accounts", "orders", "customers", "items"] {
        rows.push(row("relation", name.to_owned()));
    }
    Catalog::from_rows(1, rows)
}

fn classification(criterion: &mut Criterion) {
    let catalog = catalog();
    for (name, text) in [("select", SELECT), ("join", JOIN), ("update", UPDATE)] {
        criterion.bench_function(&format!("facts of a new {name}"), |bencher| {
            bencher.iter(|| Facts::of(black_box(text), true));
        });
        let cache = FactsCache::new(1000, 1 << 20);
        cache.facts(text, true);
        criterion.bench_function(&format!("facts of a known {name}"), |bencher| {
            bencher.iter(|| cache.facts(black_box(text), true));
        });
        let facts = Facts::of(text, true);
        criterion.bench_function(&format!("verdict and effects of a {name}"), |bencher| {
            bencher.iter(|| (facts.verdict(black_box(&catalog)), facts.effects(&catalog)));
        });
    }
    criterion.bench_function("tokens of a join", |bencher| {
        bencher.iter(|| lexer::lex(black_box(JOIN), true));
    });
    let dump = "create table t (a int, b text default ';');\n".repeat(500);
    criterion.bench_function("the last piece of 500", |bencher| {
        bencher.iter(|| pieces::piece(black_box(&dump), 500, "CREATE TABLE", false, true));
    });
}

criterion_group!(benches, classification);
criterion_main!(benches);
