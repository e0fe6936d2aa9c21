"""psycopg 3, values: parameters and results in text and binary, every common type, COPY, big results."""

import datetime as dt
import ipaddress
import uuid
from decimal import Decimal

import psycopg
from psycopg import sql
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Json, Jsonb
from psycopg.types.range import Int4Range, TimestamptzRange

from cases import DATABASE, HOST, PASSWORD, PORT, USER, case, equal, main

UTC = dt.timezone.utc


def connect(**more):
    given = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "dbname": DATABASE}
    return psycopg.connect(**{**given, "autocommit": True, **more})


VALUES = {
    "smallint": -32768,
    "integer": 2147483647,
    "bigint": -(2**63),
    "numeric": Decimal("-12345678901234567890.000000000123456789"),
    "numeric(10,2)": Decimal("0.10"),
    "real": 0.5,
    "double precision": 0.1 + 0.2,
    "boolean": True,
    "text": "žluťoučký kůň 🐎 \\ ' \" \t\n 漢字",
    "varchar(20)": "",
    "char(4)": "ab  ",
    "bytea": bytes(range(256)),
    "json": {"a": [1, None, "ž"]},
    "jsonb": {"b": {"c": 1.5}},
    "uuid": uuid.UUID("12345678-1234-5678-9abc-def012345678"),
    "date": dt.date(1, 1, 1),
    "time": dt.time(23, 59, 59, 999999),
    "timestamp": dt.datetime(2026, 11, 23, 1, 2, 3, 456789),
    "timestamptz": dt.datetime(2026, 11, 23, 1, 2, 3, 456789, UTC),
    "interval": dt.timedelta(days=-3, hours=5, microseconds=7),
    "inet": ipaddress.ip_interface("192.168.1.1/24"),
    "integer[]": [1, None, -3],
    "text[]": ["a,b", '"', None, "NULL", ""],
    "int4range": Int4Range(1, 10),
    "tstzrange": TimestamptzRange(dt.datetime(2026, 1, 1, tzinfo=UTC), None),
}


@case
def parameters_in_text_and_binary():
    with connect() as db:
        for binary in (False, True):
            cursor = db.cursor(binary=binary)
            equal(cursor.execute("select %s::int + %b, %t || 'x', %s::text is null", (40, 2, "ž", None)).fetchone(),
                  (42, "žx", True))
            equal(cursor.description[0].type_code, 23)
        equal(psycopg.RawCursor(db).execute("select $2::int - $1::int", (1, 3)).fetchone(), (2,))
        equal(psycopg.ClientCursor(db).execute("select %s, %s", ("a'\\b", [1, 2])).fetchone(), ("a'\\b", [1, 2]))
        # Many parameters in one statement.
        many = list(range(5000))
        marks = sql.SQL(",").join([sql.Placeholder()] * len(many))
        found = db.execute(sql.SQL("select count(*), max(x) from (select unnest(array[{}]::int[]) x) q").format(marks), many)
        equal(found.fetchone(), (5000, 4999))


@case
def every_common_type_round_trip():
    with connect() as db:
        db.execute("set timezone to 'UTC'")
        db.execute("drop table if exists p_types")
        columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(VALUES))
        db.execute(f"create table p_types (id int primary key, {columns})")
        values = [{"json": Json, "jsonb": Jsonb}.get(kind, lambda v: v)(value) for kind, value in VALUES.items()]
        marks = ", ".join(["%s"] * len(VALUES))
        binary_marks = ", ".join("%t" if kind == "timestamptz" else "%s" for kind in VALUES)
        db.execute(f"insert into p_types values (1, {marks})", values)
        db.cursor(binary=True).execute(f"insert into p_types values (2, {binary_marks})", values)
        db.execute(f"insert into p_types values (3, {marks})", [None] * len(VALUES))
        for binary in (False, True):
            found = db.cursor(binary=binary).execute("select * from p_types order by id").fetchall()
            for row in found[:2]:
                for (kind, wanted), value in zip(VALUES.items(), row[1:], strict=True):
                    equal(value, wanted, f"{kind}, row {row[0]}, binary {binary}")
            equal(set(found[2][1:]), {None})


@case
def types_of_ones_own():
    with connect() as db:
        db.execute("drop table if exists p_own; drop type if exists p_point, p_mood; drop domain if exists p_small")
        db.execute("create type p_mood as enum ('sad', 'ok'); create type p_point as (x int, label text)")
        db.execute("create domain p_small as int check (value < 10)")
        info = EnumInfo.fetch(db, "p_mood")
        register_enum(info, db)
        mood = info.enum
        point = CompositeInfo.fetch(db, "p_point")
        register_composite(point, db)
        db.execute("create table p_own (id int primary key, m p_mood, ms p_mood[], p p_point, ps p_point[], d p_small)")
        one = point.python_type(1, 'a,"b')
        for number, binary in enumerate((False, True)):
            db.cursor(binary=binary).execute(
                "insert into p_own values (%s, %s, %s, %s, %s, %s)",
                (number, mood.ok, [mood.ok, mood.sad], one, [one, one], 9))
            row = db.cursor(binary=binary).execute("select m, ms, p, ps, d from p_own where id = %s", (number,)).fetchone()
            equal(row, (mood.ok, [mood.ok, mood.sad], one, [one, one], 9))
        try:
            db.execute("insert into p_own (id, d) values (9, %s)", (10,))
            raise AssertionError("the domain's check")
        except psycopg.errors.CheckViolation:
            pass


@case
def vectors_as_text():
    with connect() as db:
        if not db.execute("select 1 from pg_available_extensions where name = 'vector'").fetchone():
            print("  no pgvector here: left out")
            return
        db.execute("create extension if not exists vector; drop table if exists p_vectors")
        db.execute("create table p_vectors (id int primary key, v vector(3))")
        with db.cursor() as cursor:
            cursor.executemany("insert into p_vectors values (%s, %s)", [(n, f"[{n},0,0.5]") for n in range(20)])
        found = db.execute("select id, v::text from p_vectors order by v <-> %s::vector limit 2", ("[7,0,0.5]",)).fetchall()
        equal(found[0], (7, "[7,0,0.5]"))


@case
def executemany_with_and_without_rows():
    with connect() as db, db.cursor() as cursor:
        db.execute("drop table if exists p_many; create table p_many (id int primary key, t text)")
        cursor.executemany("insert into p_many values (%s, %s)", [(n, f"t{n}") for n in range(1000)])
        equal(cursor.rowcount, 1000)
        cursor.executemany("update p_many set t = %s where id = %s returning id", [("x", n) for n in (5, 6, 7)], returning=True)
        found = [result.fetchone() for result in cursor.results()]
        equal(found, [(5,), (6,), (7,)])
        # All or nothing: one bad row takes the others along.
        try:
            cursor.executemany("insert into p_many values (%s, 'again')", [(2000,), (2001,), (1,)])
            raise AssertionError("a duplicate")
        except psycopg.errors.UniqueViolation:
            pass
        equal(db.execute("select count(*), count(*) filter (where t = 'x') from p_many").fetchone(), (1000, 3))


@case
def copy_in_and_out():
    rows = [(n, f"line\t{n}\n\\ž", None if n % 3 else n * 1.5) for n in range(5000)]
    with connect() as db, db.cursor() as cursor:
        db.execute("drop table if exists p_copy; create table p_copy (id int primary key, t text, f float8)")
        with cursor.copy("copy p_copy from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        equal(cursor.rowcount, 5000)
        with cursor.copy("copy (select * from p_copy order by id) to stdout") as copy:
            copy.set_types(["int4", "text", "float8"])
            equal(list(copy.rows()), rows)
        db.execute("truncate p_copy")
        with cursor.copy("copy p_copy from stdin (format binary)") as copy:
            copy.set_types(["int4", "text", "float8"])
            for row in rows:
                copy.write_row(row)
        with cursor.copy("copy (select * from p_copy order by id) to stdout (format binary)") as copy:
            copy.set_types(["int4", "text", "float8"])
            equal(list(copy.rows()), rows)


@case
def copy_that_fails():
    with connect() as db, db.cursor() as cursor:
        db.execute("drop table if exists p_copy2; create table p_copy2 (id int primary key)")
        # The client gives up, the server refuses a row, an empty copy, a reader that stops early.
        try:
            with cursor.copy("copy p_copy2 from stdin") as copy:
                copy.write_row((1,))
                raise KeyError("the client's own")
        except KeyError:
            pass
        try:
            with cursor.copy("copy p_copy2 from stdin") as copy:
                for n in (1, 2, 2):
                    copy.write_row((n,))
            raise AssertionError("a duplicate")
        except psycopg.errors.UniqueViolation:
            pass
        with cursor.copy("copy p_copy2 from stdin"):
            pass
        equal(cursor.rowcount, 0)
        try:
            # psycopg cancels the COPY that it does not want to read to its end.
            with cursor.copy("copy (select generate_series(1, 10000000)) to stdout") as copy:
                copy.read()
                raise KeyError("the reader's own")
        except KeyError:
            pass
        equal(db.execute("select count(*) from p_copy2").fetchone(), (0,))


@case
def cursors_of_the_server():
    with connect(autocommit=False) as db:
        with db.cursor("p_cursor", binary=True) as cursor:
            cursor.itersize = 10
            cursor.execute("select generate_series(1, %s)", (1005,))
            equal(sum(1 for _ in cursor), 1005)
        with db.cursor("p_scroll", scrollable=True) as cursor:
            cursor.execute("select generate_series(1, 100)")
            cursor.scroll(49)
            equal(cursor.fetchone(), (50,))
            cursor.scroll(-10)
            equal(cursor.fetchmany(3), [(41,), (42,), (43,)])
    with connect() as db:
        # WITH HOLD lives on after its transaction, on the same session.
        with db.cursor("p_hold", withhold=True) as cursor:
            with db.transaction():
                cursor.execute("select generate_series(1, 100)")
            equal(len(cursor.fetchmany(60)), 60)
            equal(db.execute("select 1").fetchone(), (1,))
            equal(cursor.fetchall()[-1], (100,))
        try:
            db.execute("fetch p_hold")
            raise AssertionError("the cursor is closed")
        except psycopg.errors.InvalidCursorName:
            pass


@case
def large_results_streamed():
    with connect() as db:
        cursor = db.cursor(binary=True)
        found = sum(row[0] for row in cursor.stream("select n::int8 from generate_series(1, 100000) n"))
        equal(found, 100000 * 100001 // 2)
        if psycopg.capabilities.has_stream_chunked():
            equal(sum(1 for _ in cursor.stream("select generate_series(1, 50000)", size=1000)), 50000)
        # Given up in the middle: the connection is good for more.
        for number, _ in enumerate(cursor.stream("select generate_series(1, 200000)")):
            if number == 3:
                break
        equal(db.execute("select 1").fetchone(), (1,))
        big = bytes(range(256)) * 4 * 8192
        found = db.execute("select %b::bytea, length(%b::bytea)", (big, big), binary=True).fetchone()
        equal((found[0] == big, found[1]), (True, 8 * 1024 * 1024))


@case
def several_statements_in_one_text():
    with connect() as db:
        db.execute("drop table if exists p_multi")
        cursor = db.execute("create table p_multi (id int primary key); insert into p_multi values (1); select 41; select 42")
        while cursor.nextset():
            last = cursor
        equal(last.fetchone(), (42,))
        # The second fails: nothing of the first stays.
        try:
            db.execute("insert into p_multi values (2); insert into p_multi values (1)")
            raise AssertionError("a duplicate")
        except psycopg.errors.UniqueViolation:
            pass
        equal(db.execute("table p_multi").fetchall(), [(1,)])


if __name__ == "__main__":
    main()
