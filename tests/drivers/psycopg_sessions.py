"""psycopg 3, sessions: settings, statements, pipelines, transactions, errors, locks, cancel, pools, the end."""

import os
import select
import socket
import struct
import threading
import time

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, NullConnectionPool

from cases import CERTIFICATE, DATABASE, HOST, PASSWORD, POOL, PORT, USER, case, equal, main, until


def connect(**more):
    given = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "dbname": DATABASE}
    return psycopg.connect(**{**given, "autocommit": True, **more})


def one(db, text, *values, **more):
    return db.execute(text, values or None, **more).fetchone()[0]


def refused(kind, function, *values, **more):
    """The error that must come, of this class."""
    try:
        function(*values, **more)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come")


def table(db, name, columns="id int primary key, t text"):
    db.execute(f"drop table if exists {name} cascade", prepare=False)
    db.execute(f"create table {name} ({columns})", prepare=False)


@case
def connect_and_what_the_server_says():
    with connect(application_name="p's app", options="-c search_path=pg_catalog,public -c statement_timeout=12345") as db:
        equal(db.info.parameter_status("application_name"), "p's app")
        equal(one(db, "show search_path"), "pg_catalog,public")
        equal(one(db, "show statement_timeout"), "12345ms")
        equal(one(db, "select current_setting('server_version_num')::int"), db.info.server_version)
        equal(db.info.parameter_status("client_encoding"), "UTF8")
        db.execute("set timezone to 'Asia/Tokyo'")
        equal(db.info.parameter_status("TimeZone"), "Asia/Tokyo")
        equal(str(one(db, "select timestamptz '2026-01-01 00:00+00'")), "2026-01-01 09:00:00+09:00")
        db.execute("reset all")
        equal(one(db, "show search_path"), "pg_catalog,public")
        equal(db.info.parameter_status("TimeZone"), one(db, "show timezone"))
    refused(psycopg.OperationalError, connect, password="wrong")
    error = refused(psycopg.OperationalError, connect, dbname="no_such_database")
    assert "no_such_database" in str(error), error


@case
def encryption():
    if not CERTIFICATE:
        print("  the proxy has no certificate: left out")
        return
    for more in ({"sslmode": "require"}, {"sslmode": "require", "channel_binding": "require"},
                 {"sslmode": "verify-full", "sslrootcert": CERTIFICATE, "host": "localhost", "hostaddr": HOST}):
        with connect(**more) as db:
            assert db.pgconn.ssl_in_use, more
            equal(one(db, "select 42"), 42)


@case
def pipeline_with_an_error_in_the_middle():
    with connect() as db:
        table(db, "p_pipe")
        with db.pipeline() as pipeline:
            good = db.execute("insert into p_pipe values (1, 'a') returning id")
            pipeline.sync()
            bad, after = db.cursor(), db.cursor()
            db.execute("insert into p_pipe values (2, 'undone with the third')")
            bad.execute("insert into p_pipe values (1, 'twice')")
            after.execute("insert into p_pipe values (3, 'never')")
            refused(errors.UniqueViolation, pipeline.sync)
            equal(good.fetchone(), (1,))
            equal(one(db, "select count(*) from p_pipe"), 1)
        # An error in a transaction in the pipeline, and the pipeline goes on after it.
        with db.pipeline() as pipeline:
            with db.transaction():
                db.execute("insert into p_pipe values (4, 'b')")

            def broken():
                with db.transaction():
                    db.execute("insert into p_pipe values (5, 'c')")
                    db.execute("select 1/0").fetchone()

            refused(errors.DivisionByZero, broken)
            many = [db.execute("select %s::int", (n,)) for n in range(300)]
            equal([cursor.fetchone()[0] for cursor in many], list(range(300)))
        equal(db.info.transaction_status, TransactionStatus.IDLE)
        equal([row[0] for row in db.execute("select id from p_pipe order by id")], [1, 4])


@case
def statements_of_one_name_in_two_sessions():
    with connect(prepare_threshold=0) as first, connect(prepare_threshold=0) as second:
        # Both call theirs _pg3_0: other SQL, and the same SQL with another type.
        for _ in range(4):
            equal(one(first, "select %s::int + 1", 1), 2)
            equal(one(second, "select %s::text || 'x'", "a"), "ax")
            equal(one(first, "select %s", 1), 1)
            equal(one(second, "select %s", "text"), "text")
        first.execute("prepare mine as select 11")
        second.execute("prepare mine as select 22")
        equal((one(first, "execute mine"), one(second, "execute mine")), (11, 22))
        first.execute("deallocate mine")
        refused(errors.InvalidSqlStatementName, first.execute, "execute mine")
        equal(one(second, "execute mine"), 22)
        second.execute("deallocate all")
        refused(errors.InvalidSqlStatementName, second.execute, "execute mine")
        # psycopg forgets its own at DEALLOCATE ALL, and prepares them again.
        equal(one(second, "select %s::text || 'x'", "a"), "ax")
    with connect(prepare_threshold=1) as db:
        db.prepared_max = 3
        for n in range(30):
            for _ in range(3):
                equal(one(db, f"select %s::int + {n}", 1), n + 1)


@case
def statements_after_ddl():
    with connect(prepare_threshold=0) as db, connect() as other:
        table(db, "p_ddl")
        db.execute("insert into p_ddl values (1, 'a')")
        for _ in range(3):
            equal(db.execute("select * from p_ddl where id = %s", (1,)).fetchone(), (1, "a"))
        other.execute("alter table p_ddl add column n int default 5")
        # As with one server: the new row, or 0A000 once for each statement; never the old shape.
        try:
            equal(db.execute("select * from p_ddl where id = %s", (1,)).fetchone(), (1, "a", 5))
        except errors.FeatureNotSupported as error:
            assert "cached plan" in str(error), error
            db.execute("deallocate all")
        equal(db.execute("select * from p_ddl where id = %s", (1,)).fetchone(), (1, "a", 5))
        # A plan that keeps its shape goes on, over an index and another table of the same name.
        for _ in range(3):
            equal(one(db, "select count(*) from p_ddl where t = %s", "a"), 1)
        other.execute("create index on p_ddl (t)")
        equal(one(db, "select count(*) from p_ddl where t = %s", "a"), 1)
        table(other, "p_ddl")
        equal(one(db, "select count(*) from p_ddl where t = %s", "a"), 0)


@case
def transactions_and_savepoints():
    with connect(autocommit=False) as db, connect() as other:
        table(other, "p_tx")
        db.execute("insert into p_tx values (1)")
        equal(one(other, "select count(*) from p_tx"), 0)
        db.commit()
        equal(one(other, "select count(*) from p_tx"), 1)
        db.execute("insert into p_tx values (2)")
        db.rollback()
        with db.transaction():
            db.execute("insert into p_tx values (3)")

            def inner():
                with db.transaction("deep"):
                    db.execute("insert into p_tx values (4)")
                    db.execute("insert into p_tx values (1)")

            refused(errors.UniqueViolation, inner)
            with db.transaction(force_rollback=True):
                db.execute("insert into p_tx values (5)")
            with db.transaction():
                db.execute("insert into p_tx values (6)")
        equal([row[0] for row in other.execute("select id from p_tx order by id")], [1, 3, 6])
        # COMMIT of a transaction that has failed is a rollback.
        refused(errors.UndefinedTable, db.execute, "table p_no_such")
        refused(errors.InFailedSqlTransaction, db.execute, "select 1")
        equal(db.execute("commit").statusmessage, "ROLLBACK")
        db.read_only = True
        refused(errors.ReadOnlySqlTransaction, db.execute, "insert into p_tx values (7)")
        db.rollback()
        db.read_only = None
        db.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        equal(one(db, "show transaction_isolation"), "serializable")
        db.rollback()
        refused(errors.FeatureNotSupported, other.execute, "begin; prepare transaction 'p'")


@case
def errors_and_their_classes():
    with connect() as db:
        table(db, "p_err", "id int primary key, parent int constraint p_parent references p_err, n int not null check (n > 0)")
        db.execute("insert into p_err values (1, null, 1)")
        error = refused(errors.UniqueViolation, db.execute, "insert into p_err values (1, null, 1)")
        equal((error.diag.constraint_name, error.diag.table_name, error.sqlstate), ("p_err_pkey", "p_err", "23505"))
        assert isinstance(error, psycopg.IntegrityError)
        error = refused(errors.ForeignKeyViolation, db.execute, "insert into p_err values (2, 9, 1)")
        equal(error.diag.constraint_name, "p_parent")
        refused(errors.NotNullViolation, db.execute, "insert into p_err values (2, null, null)")
        refused(errors.CheckViolation, db.execute, "insert into p_err values (%s, null, %s)", (2, -1))
        error = refused(errors.SyntaxError, db.execute, "select 'ž' fromm t")
        equal(error.diag.statement_position, "18")
        refused(errors.UndefinedColumn, db.execute, "select nothing from p_err")
        refused(errors.InvalidTextRepresentation, db.execute, "select %s::int", ("x",))
        refused(errors.StringDataRightTruncation, db.execute, "select 'abc'::bpchar(2)::text; create temp table w (t varchar(1)); insert into w values ('ab')")
        error = refused(errors.RaiseException, db.execute,
                        "do $$ begin raise exception 'mine' using detail = 'more', hint = 'try' ; end $$")
        equal((error.diag.message_primary, error.diag.message_detail, error.diag.message_hint), ("mine", "more", "try"))
        db.execute("set statement_timeout = 50")
        refused(errors.QueryCanceled, db.execute, "select pg_sleep(30)")
        db.execute("reset statement_timeout")
        equal(one(db, "select 1"), 1)


@case
def conflicts_and_locks():
    with connect(autocommit=False) as first, connect(autocommit=False) as second, connect() as other:
        table(other, "p_lock")
        other.execute("insert into p_lock values (1, 'a'), (2, 'b')")
        for db in (first, second):
            db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            equal(one(db, "select count(*) from p_lock"), 2)
        first.execute("update p_lock set t = 'first' where id = 1")
        first.commit()
        refused(errors.SerializationFailure, second.execute, "update p_lock set t = 'second' where id = 1")
        second.rollback()
        first.execute("select * from p_lock where id = 1 for update")
        refused(errors.LockNotAvailable, second.execute, "select * from p_lock where id = 1 for update nowait")
        second.rollback()
        equal(second.execute("select id from p_lock order by id for no key update skip locked").fetchall(), [(2,)])
        second.execute("set local lock_timeout = 50")
        refused(errors.LockNotAvailable, second.execute, "update p_lock set t = 'x' where id = 1")
        second.rollback()
        # A deadlock: one of both is told.
        first.rollback()
        first.execute("update p_lock set t = 'd1' where id = 1")
        second.execute("update p_lock set t = 'd2' where id = 2")
        told = []

        def cross(db, row):
            try:
                db.execute("update p_lock set t = 'cross' where id = %s", (row,))
                db.commit()
            except errors.DeadlockDetected:
                told.append(row)
                db.rollback()

        threads = [threading.Thread(target=cross, args=pair) for pair in ((first, 2), (second, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        equal(len(told), 1)


@case
def settings_do_not_leak():
    with connect() as db:
        db.execute("drop role if exists p_role; create role p_role")
    look = "select current_user, current_setting('timezone'), current_setting('work_mem'), current_setting('p.own', true)"
    with connect() as db:
        usual = db.execute(look).fetchone()
    busy = []
    for _ in range(POOL):
        db = connect()
        db.execute("set timezone to 'Asia/Tokyo'; set role p_role")
        db.execute("select set_config('work_mem', '7MB', false), set_config('p.own', 'x', false)")
        busy.append(db)
    changed = ("p_role", "Asia/Tokyo", "7MB", "x")
    for _ in range(POOL * 2):
        with connect() as db:
            equal((db.execute(look).fetchone()[:3], db.execute(look).fetchone()[3] or None), (usual[:3], usual[3]))
    for db in busy:
        equal(db.execute(look).fetchone(), changed)
    first = busy[0]
    # SET LOCAL, and a SET that is rolled back.
    with first.transaction(force_rollback=True):
        first.execute("set local work_mem = '9MB'; set timezone to 'UTC'; reset role")
        equal(first.execute(look).fetchone()[1:3], ("UTC", "9MB"))
    equal(first.execute(look).fetchone(), changed)
    first.execute("discard all")
    equal((first.execute(look).fetchone()[:3]), usual[:3])
    for db in busy:
        db.close()
    with connect() as db:
        db.execute("drop role p_role")


@case
def notifications():
    with connect() as ear, connect() as mouth:
        ear.execute("listen p_channel")
        with mouth.transaction():
            mouth.execute("notify p_channel, 'one'")
            mouth.execute("select pg_notify('p_channel', %s)", ("žwei",))
            equal(list(ear.notifies(timeout=0.2)), [])
        found = list(ear.notifies(timeout=20, stop_after=2))
        equal([note.payload for note in found], ["one", "žwei"])
        # One delivery, though several nodes could tell of it.
        equal(list(ear.notifies(timeout=0.3)), [])
        # In the middle of other work, to oneself too.
        heard = []
        ear.add_notify_handler(heard.append)
        ear.execute("notify p_channel, 'self'")
        until("one's own notification", lambda: ear.execute("select 1") and [n.payload for n in heard] == ["self"])
        ear.execute("unlisten *")
        mouth.execute("notify p_channel, 'nobody'")
        ear.execute("select 1")
        equal(len(heard), 1)


@case
def notices():
    with connect() as db:
        heard = []
        db.add_notice_handler(lambda diag: heard.append((diag.severity, diag.message_primary)))
        db.execute("do $$ begin raise notice 'ž %', 1; raise warning 'two'; end $$", prepare=True)
        db.execute("set client_min_messages = warning; do $$ begin raise notice 'unheard'; end $$")
        equal(heard, [("NOTICE", "ž 1"), ("WARNING", "two")])


@case
def advisory_locks_and_temporary_tables():
    with connect() as first, connect() as second:
        equal(one(first, "select pg_try_advisory_lock(77)"), True)
        equal(one(second, "select pg_try_advisory_lock(77)"), False)
        equal(one(first, "select pg_advisory_unlock(77)"), True)
        equal(one(second, "select pg_try_advisory_lock(77)"), True)
        second.close()
        until("the lock of a session that ended is free", lambda: one(first, "select pg_try_advisory_lock(77)"))
        first.execute("create temp table p_temp (id int); insert into p_temp values (1), (2)")
        with connect() as third:
            refused(errors.UndefinedTable, third.execute, "table p_temp")
            equal(one(first, "select count(*) from p_temp"), 2)
        with first.transaction():
            first.execute("create temp table p_drop on commit drop as select 1 as x")
            equal(one(first, "select x from p_drop"), 1)
        refused(errors.UndefinedTable, first.execute, "table p_drop")
        first.execute("create temp sequence p_seq")
        equal([one(first, "select nextval('p_seq')") for _ in range(3)], [1, 2, 3])
        equal(one(first, "select currval('p_seq')"), 3)


@case
def cancelling():
    with connect() as db:
        for stop in (db.cancel, db.cancel_safe):
            began = time.monotonic()
            timer = threading.Timer(0.3, stop)
            timer.start()
            refused(errors.QueryCanceled, db.execute, "select pg_sleep(30)")
            timer.join()
            assert time.monotonic() - began < 15
            equal(one(db, "select 1"), 1)
        # A cancel that comes too late harms nobody.
        with connect() as other:
            for _ in range(10):
                db.execute("select 1")
                db.cancel()
                equal(one(other, "select 2"), 2)
        # In a transaction; and a statement that waits for a lock.
        with connect(autocommit=False) as holder:
            table(holder, "p_cancel")
            holder.commit()
            holder.execute("lock table p_cancel")
            timer = threading.Timer(0.3, db.cancel_safe)
            timer.start()
            refused(errors.QueryCanceled, db.execute, "insert into p_cancel values (1)")
            timer.join()


@case
def many_clients_at_once():
    with connect() as db:
        table(db, "p_crowd", "id int primary key, client int")
    clients, rounds = 40, 5
    faults, barrier = [], threading.Barrier(clients)

    def work(number):
        try:
            with connect() as db:
                barrier.wait(40)
                for turn in range(rounds):
                    key = number * rounds + turn
                    with db.transaction():
                        db.execute("insert into p_crowd values (%s, %s)", (key, number))
                    # Read after one's own write.
                    equal(one(db, "select client from p_crowd where id = %s", key), number)
        except BaseException as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(faults, [])
    with connect() as db:
        equal(one(db, "select count(*) from p_crowd"), clients * rounds)


@case
def the_driver_s_own_pools():
    given = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "dbname": DATABASE}
    url = psycopg.conninfo.make_conninfo(**given)
    with ConnectionPool(url, min_size=2, max_size=4, check=ConnectionPool.check_connection,
                        reset=lambda db: db.execute("discard all") and db.commit() or None,
                        kwargs={"autocommit": True}) as pool:
        pool.wait(20)
        with pool.connection() as db:
            db.execute("set work_mem = '5MB'; create temp table p_pool (id int)")
        for _ in range(8):
            with pool.connection() as db:
                assert one(db, "show work_mem") != "5MB"
                refused(errors.UndefinedTable, db.execute, "table p_pool")
        # One that is ended on the server is replaced.
        with pool.connection() as db:
            refused(psycopg.OperationalError, db.execute, "select pg_terminate_backend(pg_backend_pid())")
        with pool.connection() as db:
            equal(one(db, "select 1"), 1)
    with NullConnectionPool(url, max_size=3) as pool:
        for n in range(5):
            with pool.connection() as db:
                equal(one(db, "select %s::int", n), n)


@case
def a_client_vanishes():
    with connect() as db:
        table(db, "p_gone")
        db.execute("insert into p_gone values (1, 'a')")
    for way in ("reset", "end"):
        gone = connect(autocommit=False)
        gone.execute("select pg_advisory_lock(78)")
        gone.execute("insert into p_gone values (2, 'lost')")
        gone.execute("update p_gone set t = 'lost' where id = 1")
        gone.execute("listen p_gone_channel")
        # Without a word of goodbye: the socket closes, with RST or FIN, under libpq's hands.
        held = socket.socket(fileno=os.dup(gone.fileno()))
        if way == "reset":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, gone.fileno())
        os.close(null)
        held.close()
        with connect() as db:
            until("its lock is free", lambda: one(db, "select pg_try_advisory_lock(78)"))
            one(db, "select pg_advisory_unlock(78)")
            db.execute("set lock_timeout = '20s'")
            db.execute("update p_gone set t = 'b' where id = 1")
            equal(db.execute("select * from p_gone").fetchall(), [(1, "b")])
        try:
            gone.close()
        except psycopg.Error:
            pass


if __name__ == "__main__":
    main()
