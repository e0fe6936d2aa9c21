"""asyncpg: its statement cache, introspection, portals with row limits, COPY, timeouts, pool and reset."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import uuid
from decimal import Decimal

import asyncpg
from asyncpg import exceptions as errors

from cases import CERTIFICATE, DATABASE, HOST, PASSWORD, POOL, PORT, USER, case, equal, main, until_async

UTC = dt.timezone.utc
GIVEN = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "database": DATABASE, "ssl": False}


class Db:
    """A connection for the time of a `with`."""

    def __init__(self, **more):
        self.given = {**GIVEN, **more}

    async def __aenter__(self):
        self.db = await asyncpg.connect(**self.given)
        return self.db

    async def __aexit__(self, *_):
        if not self.db.is_closed():
            await self.db.close(timeout=20)


async def refused(kind, awaitable):
    """The error that must come, of this class."""
    try:
        await awaitable
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come")


async def table(db, name, columns="id int primary key, t text"):
    await db.execute(f"drop table if exists {name} cascade; create table {name} ({columns})")


@case
async def connect_and_what_the_server_says():
    settings = {"application_name": "a's app", "search_path": "pg_catalog,public", "jit": "off"}
    async with Db(server_settings=settings) as db:
        equal(await db.fetchval("show search_path"), "pg_catalog,public")
        equal(await db.fetchval("show jit"), "off")
        equal(db.get_settings().application_name, "a's app")
        equal(db.get_server_version().major, await db.fetchval("select current_setting('server_version_num')::int / 10000"))
        await db.execute("set timezone to 'Asia/Tokyo'")
        equal(db.get_settings().TimeZone, "Asia/Tokyo")
        # As the pool does at check-in: RESET leads back to what the startup packet asked for.
        await db.execute("set search_path to public; set jit to on")
        await db.reset()
        equal(await db.fetchval("show search_path"), "pg_catalog,public")
        equal(await db.fetchval("show jit"), "off")
    await refused(errors.InvalidPasswordError, asyncpg.connect(**{**GIVEN, "password": "wrong"}))
    await refused(errors.InvalidCatalogNameError, asyncpg.connect(**{**GIVEN, "database": "no_such_database"}))
    await refused(errors.CantChangeRuntimeParamError, asyncpg.connect(**GIVEN, server_settings={"wal_level": "logical"}))


@case
async def encryption():
    if not CERTIFICATE:
        print("  the proxy has no certificate: left out")
        return
    async with Db(ssl="require") as db:
        equal(await db.fetchval("select 42"), 42)
    async with Db(host="localhost", ssl=ssl.create_default_context(cafile=CERTIFICATE)) as db:
        equal(await db.fetchval("select 42"), 42)


VALUES = {
    "smallint": -32768,
    "integer": 2147483647,
    "bigint": -(2**63),
    "numeric": Decimal("-12345678901234567890.000000000123456789"),
    "real": 0.5,
    "double precision": 0.1 + 0.2,
    "boolean": True,
    "text": "žluťoučký kůň 🐎 \\ ' \" \t\n 漢字",
    "varchar(20)": "",
    "char(4)": "ab  ",
    "bytea": bytes(range(256)),
    "json": '{"a": [1, null]}',
    "jsonb": '{"b": {"c": 1.5}}',
    "uuid": uuid.UUID("12345678-1234-5678-9abc-def012345678"),
    "date": dt.date(1, 1, 1),
    "time": dt.time(23, 59, 59, 999999),
    "timestamp": dt.datetime(2026, 11, 23, 1, 2, 3, 456789),
    "timestamptz": dt.datetime(2026, 11, 23, 1, 2, 3, 456789, UTC),
    "interval": dt.timedelta(days=-3, hours=5, microseconds=7),
    "inet": ipaddress.ip_interface("192.168.1.1/24"),
    "bit varying": asyncpg.BitString("10110"),
    "integer[]": [1, None, -3],
    "integer[][]": [[1, 2], [3, 4]],
    "text[]": ["a,b", '"', None, "NULL", ""],
    "int4range": asyncpg.Range(1, 10),
    "int4multirange": [asyncpg.Range(1, 3), asyncpg.Range(5, 7)],
    "point": asyncpg.Point(1.5, -2.0),
}


@case
async def every_common_type_round_trip():
    async with Db() as db:
        columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(VALUES))
        await table(db, "a_types", f"id int primary key, {columns}")
        marks = ", ".join(f"${n + 2}" for n in range(len(VALUES)))
        insert = f"insert into a_types values ($1, {marks}) returning *"
        values = list(VALUES.values())
        row = await db.fetchrow(insert, 1, *values)
        for (kind, wanted), value in zip(VALUES.items(), list(row)[1:], strict=True):
            equal(value, wanted, kind)
        row = await db.fetchrow(insert, 2, *[None] * len(values))
        equal(set(list(row)[1:]), {None})
        equal([list(row)[1:] for row in await db.fetch("select * from a_types where id = 1")][0], values)


@case
async def types_of_ones_own():
    async with Db() as db:
        await db.execute("drop table if exists a_own; drop type if exists a_point, a_mood; drop domain if exists a_small")
        await db.execute("create type a_mood as enum ('sad', 'ok'); create type a_point as (x int, label text)")
        await db.execute("create domain a_small as int check (value < 10)")
        await table(db, "a_own", "id int primary key, m a_mood, ms a_mood[], p a_point, ps a_point[], d a_small, ds a_small[]")
        # asyncpg asks the catalog for types it does not know, in statements of its own.
        one = (1, 'a,"b')
        values = ["ok", ["ok", "sad"], one, [one, one], 9, [1, 2]]
        row = await db.fetchrow("insert into a_own values (1, $1, $2, $3, $4, $5, $6) returning m, ms, p, ps, d, ds", *values)
        equal([tuple(v) if isinstance(v, asyncpg.Record) else v for v in row],
              ["ok", ["ok", "sad"], one, [one, one], 9, [1, 2]])
        await refused(errors.CheckViolationError, db.execute("insert into a_own (id, d) values (9, $1)", 10))
        await db.set_type_codec("jsonb", encoder=str, decoder=len, schema="pg_catalog")
        equal(await db.fetchval("select $1::jsonb", "[1, 2]"), 6)
        if await db.fetchval("select count(*) from pg_available_extensions where name = 'vector'"):
            await db.execute("create extension if not exists vector")
            await table(db, "a_vectors", "id int primary key, v vector(3)")
            await db.executemany("insert into a_vectors values ($1, $2::text::vector)", [(n, f"[{n},0,0.5]") for n in range(20)])
            found = await db.fetchrow("select id, v::text from a_vectors order by v <-> $1::text::vector limit 1", "[7,0,0.5]")
            equal(tuple(found), (7, "[7,0,0.5]"))


@case
async def executemany_is_all_or_nothing():
    async with Db() as db:
        await table(db, "a_many")
        await db.executemany("insert into a_many values ($1, $2)", [(n, f"t{n}") for n in range(3000)])
        await refused(errors.UniqueViolationError,
                      db.executemany("insert into a_many values ($1, 'x')", [(n,) for n in [*range(5000, 6000), 1, 7000]]))
        equal(await db.fetchval("select count(*) from a_many"), 3000)
        found = await db.fetchmany("insert into a_many values ($1, 'y') returning id", [(n,) for n in (8001, 8002)])
        equal([row[0] for row in found], [8001, 8002])


@case
async def copy_in_and_out():
    async with Db() as db:
        await table(db, "a_copy", "id int primary key, t text, f float8, b bytea")
        rows = [(n, f"line\t{n}\n\\ž", None if n % 3 else n * 1.5, bytes([n % 256])) for n in range(5000)]
        equal(await db.copy_records_to_table("a_copy", records=rows), "COPY 5000")
        equal([tuple(row) for row in await db.fetch("select * from a_copy order by id")], rows)
        pieces = []

        async def take(data):
            pieces.append(data)

        await db.copy_from_query("select id, t from a_copy where id < $1 order by id", 100, output=take, format="csv")
        text = b"".join(pieces)
        await table(db, "a_copy2")

        async def give():
            for start in range(0, len(text), 100):
                yield text[start:start + 100]

        equal(await db.copy_to_table("a_copy2", source=give(), format="csv"), "COPY 100")
        await refused(errors.UniqueViolationError, db.copy_to_table("a_copy2", source=give(), format="csv"))

        async def breaks():
            yield b"900,x\n"
            raise KeyError("the client's own")

        await refused(KeyError, db.copy_to_table("a_copy2", source=breaks(), format="csv"))
        equal(await db.copy_records_to_table("a_copy2", records=[]), "COPY 0")
        equal(await db.fetchval("select count(*) from a_copy2"), 100)


@case
async def portals_with_row_limits():
    async with Db() as db:
        async with db.transaction():
            total = 0
            async for row in db.cursor("select generate_series(1, $1::int)", 1005, prefetch=10):
                total += 1
            equal(total, 1005)
            # Two portals side by side, of one statement, with other work in between.
            statement = await db.prepare("select generate_series($1::int, 1000)")
            first, second = await statement.cursor(1), await statement.cursor(501)
            for turn in range(20):
                equal([row[0] for row in await first.fetch(10)], list(range(turn * 10 + 1, turn * 10 + 11)))
                equal((await second.fetchrow())[0], 501 + turn)
                equal(await db.fetchval("select $1::int", turn), turn)
            equal(await first.forward(100), 100)
            equal((await first.fetchrow())[0], 301)
        await refused(errors.NoActiveSQLTransactionError, first.fetch(1))
        await db.execute("begin; declare a_hold cursor with hold for select generate_series(1, 50); commit")
        equal(len(await db.fetch("fetch 20 from a_hold")), 20)
        await db.execute("close a_hold")
        await refused(errors.InvalidCursorNameError, db.fetch("fetch 20 from a_hold"))
        big = await db.fetch("select n, repeat('x', 100) from generate_series(1, 50000) n")
        equal((len(big), big[-1][0]), (50000, 50000))


@case
async def statements_of_two_sessions_and_after_ddl():
    async with Db() as first, Db() as second:
        # Both number theirs __asyncpg_stmt_1__ and on.
        for _ in range(5):
            equal(await first.fetchval("select $1::int + 1", 1), 2)
            equal(await second.fetchval("select $1::text || 'x'", "a"), "ax")
        mine, theirs = await first.prepare("select 1 as a", name="same"), await second.prepare("select 'b' as b, 2 as c", name="same")
        equal((await mine.fetchval(), await theirs.fetchval()), (1, "b"))
        equal([a.name for a in theirs.get_attributes()], ["b", "c"])
        equal([t.name for t in (await first.prepare("select $1::uuid, $2::int[]")).get_parameters()], ["uuid", "int4[]"])
        # A temporary table ties the session to its connection: there all is as with one server.
        await first.execute("create temp table a_tie ()")
        await table(second, "a_ddl")
        await second.execute("insert into a_ddl values (1, 'a')")
        look = "select * from a_ddl where id = $1"
        equal(tuple(await first.fetchrow(look, 1)), (1, "a"))
        await second.execute("alter table a_ddl add column n int default 5")
        # asyncpg prepares again by itself when it is told 0A000 of a cached plan, outside a transaction.
        equal(tuple(await first.fetchrow(look, 1)), (1, "a", 5))
        await second.execute("alter table a_ddl alter column n type text using n || '!'")
        async with first.transaction():
            await refused(errors.InvalidCachedStatementError, first.fetchrow(look, 1))
            await refused(errors.InFailedSQLTransactionError, first.execute("select 1"))
            await first.execute("rollback; begin")
        equal(tuple(await first.fetchrow(look, 1)), (1, "a", "5!"))
        async with Db() as third:
            equal(tuple(await third.fetchrow(look, 1)), (1, "a", "5!"))
        await second.execute("drop table a_ddl")
        await refused(errors.UndefinedTableError, first.fetchrow("select * from a_ddl where id = $1", 1))
    async with Db(statement_cache_size=5) as db:
        for n in range(60):
            equal(await db.fetchval(f"select $1::int + {n % 20}", 1), n % 20 + 1)
    async with Db(statement_cache_size=0) as db:
        equal([await db.fetchval("select $1::int", n) for n in range(5)], list(range(5)))


@case
async def cached_statements_after_a_column_changed_its_type():
    # More clients than connections, so that each runs its statement where others have prepared it.
    clients = [await asyncpg.connect(**GIVEN) for _ in range(POOL * 2)]
    try:
        await table(clients[0], "a_shape", "n int")
        await clients[0].execute("insert into a_shape values (1633837924)")
        value = 1633837924

        async def look(client):
            for _ in range(4):
                # The four bytes of the number are those of the text: who decodes by the old description sees it.
                equal(await client.fetchval("select n from a_shape"), value)

        for value, change in [
            (value, "set default 0"),
            ("abcd", "drop default, alter column n type text using 'abcd'"),
            (value, "type int using 1633837924"),
            ("abcd", "type varchar(9) using 'abcd'"),
        ]:
            await clients[0].execute(f"alter table a_shape alter column n {change}")
            # Who prepares a text after the DDL meets nothing of what others prepared before.
            async with Db() as newcomer:
                equal(await newcomer.fetchval("select count(*) from a_shape where n = $1", value), 1)
            await asyncio.gather(*map(look, clients))
        await clients[0].execute("drop table a_shape")
    finally:
        await asyncio.gather(*(client.close(timeout=20) for client in clients))


@case
async def transactions_and_savepoints():
    async with Db() as db, Db() as other:
        await table(other, "a_tx")

        async def inner():
            async with db.transaction():
                await db.execute("insert into a_tx values (2)")
                await db.execute("insert into a_tx values (1)")

        async with db.transaction():
            await db.execute("insert into a_tx values ($1)", 1)
            await refused(errors.UniqueViolationError, inner())
            async with db.transaction():
                await db.execute("insert into a_tx values (3)")
            equal(await other.fetchval("select count(*) from a_tx"), 0)
        # Read after one's own write, on another connection too.
        equal([row[0] for row in await other.fetch("select id from a_tx order by id")], [1, 3])
        await refused(errors.ReadOnlySQLTransactionError, read_only(db))
        async with db.transaction(isolation="serializable", readonly=True, deferrable=True):
            equal(await db.fetchval("show transaction_isolation"), "serializable")
        one = db.transaction(isolation="repeatable_read")
        await one.start()
        equal(await db.fetchval("select count(*) from a_tx"), 2)
        await other.execute("update a_tx set t = 'other' where id = 1")
        await refused(errors.SerializationError, db.execute("update a_tx set t = 'mine' where id = 1"))
        await one.rollback()
        equal(await db.fetchval("select t from a_tx where id = 1"), "other")


async def read_only(db):
    async with db.transaction(readonly=True):
        await db.execute("insert into a_tx values (9)")


@case
async def errors_and_their_classes():
    async with Db() as db, Db() as other:
        await table(db, "a_err", "id int primary key, parent int constraint a_parent references a_err, n int not null check (n > 0)")
        await db.execute("insert into a_err values (1, null, 1)")
        error = await refused(errors.UniqueViolationError, db.execute("insert into a_err values ($1, null, 1)", 1))
        equal((error.constraint_name, error.table_name, error.sqlstate), ("a_err_pkey", "a_err", "23505"))
        error = await refused(errors.ForeignKeyViolationError, db.execute("insert into a_err values (2, 9, 1)"))
        equal(error.constraint_name, "a_parent")
        await refused(errors.NotNullViolationError, db.execute("insert into a_err values (2, null, null)"))
        error = await refused(errors.PostgresSyntaxError, db.fetch("select 'ž' fromm t"))
        equal(error.position, "18")
        await refused(errors.UndefinedColumnError, db.fetch("select nothing from a_err"))
        await refused(errors.DivisionByZeroError, db.fetchval("select 1 / $1::int", 0))
        await refused(errors.DataError, db.fetchval("select $1::int", "no number"))
        async with other.transaction():
            await other.execute("select * from a_err where id = 1 for update")
            await refused(errors.LockNotAvailableError, db.execute("select * from a_err where id = 1 for update nowait"))
        await refused(errors.FeatureNotSupportedError, db.execute("select lo_create(0)"))
        equal(await db.fetchval("select 1"), 1)


@case
async def timeouts_and_cancels():
    async with Db() as db:
        for _ in range(3):
            # asyncpg cancels the statement by a CancelRequest of its own.
            await refused(asyncio.TimeoutError, db.fetchval("select pg_sleep(30)", timeout=0.2))
            equal(await db.fetchval("select 1"), 1)
        task = asyncio.ensure_future(db.execute("select pg_sleep(30)"))
        await asyncio.sleep(0.2)
        task.cancel()
        await refused(asyncio.CancelledError, task)
        equal(await db.fetchval("select 2"), 2)
        await refused(asyncio.TimeoutError, in_transaction(db))
        equal(await db.fetchval("select 3"), 3)


async def in_transaction(db):
    async with db.transaction():
        await db.fetchval("select pg_sleep(30)", timeout=0.2)


@case
async def notifications_and_notices():
    async with Db() as ear, Db() as mouth:
        heard, noted = [], []
        await ear.add_listener("a_channel", lambda _db, _pid, channel, payload: heard.append((channel, payload)))
        ear.add_log_listener(lambda _db, message: noted.append(message.message))
        async with mouth.transaction():
            await mouth.execute("select pg_notify('a_channel', $1)", "žprvní")
            await mouth.execute("notify a_channel, 'two'")

        async def both():
            return len(heard) >= 2

        # Idle: nothing is asked meanwhile.
        await until_async("both are heard", both)
        await ear.execute("do $$ begin raise notice 'noted'; end $$")
        equal(heard, [("a_channel", "žprvní"), ("a_channel", "two")])
        equal(noted, ["noted"])
        await ear.reset()
        await mouth.execute("notify a_channel, 'nobody'")
        equal(await ear.fetchval("select 1"), 1)
        equal(len(heard), 2)


@case
async def its_pool_gives_back_clean_connections():
    given = {**GIVEN, "min_size": 1, "max_size": 1}
    async with asyncpg.create_pool(**given, server_settings={"search_path": "public,pg_catalog"}) as pool:
        async with pool.acquire() as db:
            await table(db, "a_pool")
            usual = await db.fetchval("show work_mem")
            await db.execute("set work_mem = '7MB'; set search_path = pg_catalog; listen a_pool_channel")
            await db.execute("select pg_advisory_lock(79)")
            await db.execute("begin; declare a_left cursor with hold for select 1; commit")
            await db.add_listener("a_pool_other", print)
            await db.remove_listener("a_pool_other", print)
        async with pool.acquire() as db:
            equal((await db.fetchval("show work_mem"), await db.fetchval("show search_path")), (usual, "public,pg_catalog"))
            equal(await db.fetchval("select count(*) from pg_listening_channels()"), 0)
            equal(await db.fetchval("select count(*) from pg_cursors where name = 'a_left'"), 0)
            async with Db() as other:
                equal(await other.fetchval("select pg_try_advisory_lock(79)"), True)
        for n in range(20):
            equal(await pool.fetchval("select $1::int", n), n)
        await pool.expire_connections()
        equal(await pool.fetchval("select 1"), 1)


@case
async def settings_do_not_leak():
    async with Db() as db:
        await db.execute("drop role if exists a_role; create role a_role")
        look = "select current_user::text, current_setting('timezone'), coalesce(current_setting('a.own', true), '')"
        usual = tuple(await db.fetchrow(look))
    busy = [await asyncpg.connect(**GIVEN) for _ in range(POOL)]
    for db in busy:
        await db.execute("set role a_role; set timezone to 'Asia/Tokyo'")
        await db.execute("select set_config('a.own', $1, false)", "x")
    for _ in range(POOL):
        async with Db() as db:
            equal(tuple(await db.fetchrow(look)), usual)
    for db in busy:
        equal(tuple(await db.fetchrow(look)), ("a_role", "Asia/Tokyo", "x"))
        await db.close(timeout=20)
    async with Db() as db:
        await db.execute("drop role a_role")


@case
async def many_clients_at_once():
    clients, rounds = 40, 5
    async with Db() as db:
        await table(db, "a_crowd", "id int primary key, client int")

    async def work(number):
        async with Db() as db:
            for turn in range(rounds):
                key = number * rounds + turn
                async with db.transaction():
                    await db.execute("insert into a_crowd values ($1, $2)", key, number)
                equal(await db.fetchval("select client from a_crowd where id = $1", key), number)

    await asyncio.gather(*(work(number) for number in range(clients)))
    async with asyncpg.create_pool(**GIVEN, min_size=0, max_size=40) as pool:
        found = await asyncio.gather(*(pool.fetchval("select $1::int", n) for n in range(400)))
        equal(found, list(range(400)))
        equal(await pool.fetchval("select count(*) from a_crowd"), clients * rounds)


@case
async def a_client_vanishes():
    async with Db() as db:
        await table(db, "a_gone")
        await db.execute("insert into a_gone values (1, 'a')")
        for way in ("idle in a transaction", "in the middle of a statement"):
            gone = await asyncpg.connect(**GIVEN)
            await gone.transaction().start()
            await gone.execute("insert into a_gone values (2, 'lost')")
            await gone.execute("update a_gone set t = 'lost' where id = 1")
            await gone.execute("create temp table a_gone_temp as select 1; select pg_advisory_lock(80)")
            if way != "idle in a transaction":
                task = asyncio.ensure_future(gone.execute("select pg_sleep(2)"))

                async def sleeps():
                    return await db.fetchval("select count(*) from pg_stat_activity where query = 'select pg_sleep(2)' and state = 'active'")

                await until_async("it sleeps", sleeps)
            gone.terminate()
            if way != "idle in a transaction":
                await asyncio.gather(task, return_exceptions=True)
            await db.execute("set lock_timeout = '20s'")
            await db.execute("update a_gone set t = 'b' where id = 1")
            equal([tuple(row) for row in await db.fetch("table a_gone")], [(1, "b")])

            async def free():
                return await db.fetchval("select pg_try_advisory_lock(80)")

            await until_async("its lock is free", free)
            await db.fetchval("select pg_advisory_unlock(80)")


if __name__ == "__main__":
    main()
