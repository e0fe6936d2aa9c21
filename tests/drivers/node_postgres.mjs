// node-postgres with pg-cursor and pg-query-stream: portals with row limits, named queries, pools, errors.
//
// A case is a function whose name says what is tried. All are run though one fails; the exit code is 1 then.
// Arguments choose cases by a part of their name.

import assert from 'node:assert/strict'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import { setTimeout as pause } from 'node:timers/promises'

// The packages lie elsewhere, and imports look beside this file only.
const require = createRequire(`${process.env.NODE_MODULES_FOLDER}/package.json`)
const pg = require('pg')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')

const GIVEN = {
  host: process.env.PROXY_HOST,
  port: Number(process.env.PROXY_PORT),
  user: process.env.PROXY_USER,
  password: process.env.PROXY_PASSWORD,
  database: process.env.PROXY_DATABASE,
}
const CERTIFICATE = process.env.PROXY_CERTIFICATE
// The connections that a pool of the proxy has: more clients than these must share them.
const POOL = Number(process.env.PROXY_POOL ?? 8)
const CASE_MS = 60_000
const PATIENCE_MS = 20_000
const CASES = []

const equal = assert.deepStrictEqual

async function connect(more = {}) {
  const client = new pg.Client({ ...GIVEN, ...more })
  // A connection that ends while it is idle says so here; a case that minds looks itself.
  client.on('error', () => {})
  await client.connect()
  return client
}

// Clients for the time of a function.
async function using(count, work, more) {
  const clients = await Promise.all(Array.from({ length: count }, () => connect(more)))
  try {
    return await work(...clients)
  } finally {
    await Promise.all(clients.map((client) => client.end()))
  }
}

async function one(client, text, values) {
  const { rows } = await client.query({ text, values, rowMode: 'array' })
  return rows[0]?.[0]
}

// The error that must come, with this SQLSTATE.
async function refused(code, promise) {
  const error = await promise.then(
    () => assert.fail(`${code} did not come`),
    (error) => error,
  )
  equal(error.code, code, error.stack)
  return error
}

async function until(what, question) {
  const end = Date.now() + PATIENCE_MS
  while (!(await question())) {
    assert(Date.now() < end, `in vain: ${what}`)
    await pause(20)
  }
}

async function table(client, name, columns = 'id int primary key, t text') {
  await client.query(`drop table if exists ${name} cascade; create table ${name} (${columns})`)
}

CASES.push(async function connectAndWhatTheServerSays() {
  const more = { application_name: "n's app", options: '-c search_path=pg_catalog,public', statement_timeout: 12345 }
  await using(1, async (client) => {
    equal(await one(client, 'show application_name'), "n's app")
    equal(await one(client, 'show search_path'), 'pg_catalog,public')
    equal(await one(client, 'show statement_timeout'), '12345ms')
    await client.query('set search_path to public')
    await client.query('reset all')
    equal(await one(client, 'show search_path'), 'pg_catalog,public')
  }, more)
  await refused('28P01', connect({ password: 'wrong' }))
  await refused('3D000', connect({ database: 'no_such_database' }))
})

CASES.push(async function encryption() {
  if (!CERTIFICATE) {
    console.log('  the proxy has no certificate: left out')
    return
  }
  for (const ssl of [{ rejectUnauthorized: false }, { ca: fs.readFileSync(CERTIFICATE) }]) {
    await using(1, async (client) => equal(await one(client, 'select 42'), 42), { host: 'localhost', ssl })
  }
  // SCRAM bound to the certificate.
  const more = { ssl: { rejectUnauthorized: false }, enableChannelBinding: true }
  await using(1, async (client) => equal(await one(client, 'select 42'), 42), more)
})

CASES.push(async function everyCommonTypeRoundTrip() {
  const values = {
    smallint: -32768,
    integer: 2147483647,
    bigint: '-9223372036854775808',
    numeric: '-12345678901234567890.000000000123456789',
    'double precision': 0.1 + 0.2,
    boolean: true,
    text: 'žluťoučký kůň 🐎 \\ \' " \t\n 漢字',
    'varchar(20)': '',
    bytea: Buffer.from(Array.from({ length: 256 }, (_, n) => n)),
    json: { a: [1, null, 'ž'] },
    jsonb: { b: { c: 1.5 } },
    uuid: '12345678-1234-5678-9abc-def012345678',
    timestamptz: new Date('2026-11-23T01:02:03.456Z'),
    'integer[]': [1, null, -3],
    'text[]': ['a,b', '"', null, 'NULL', ''],
    int4range: '[1,10)',
    inet: '192.168.1.1/24',
  }
  await using(1, async (client) => {
    const kinds = Object.keys(values)
    await client.query('drop table if exists n_types; drop type if exists n_mood, n_point; drop domain if exists n_small')
    await client.query("create type n_mood as enum ('sad', 'ok'); create type n_point as (x int, label text)")
    await client.query('create domain n_small as int check (value < 10)')
    const columns = kinds.map((kind, n) => `c${n} ${kind}`).join(', ')
    await client.query(`create table n_types (id int primary key, ${columns}, m n_mood, p n_point, s n_small)`)
    const marks = kinds.map((_, n) => `$${n + 2}`).join(', ')
    const given = [...Object.values(values)]
    const text = `insert into n_types values ($1, ${marks}, 'ok', row(1, 'a,"b'), 9) returning *`
    const { rows, fields } = await client.query({ text, values: [1, ...given], rowMode: 'array' })
    equal(rows[0].slice(1), [...given, 'ok', '(1,"a,""b")', 9])
    equal(fields.length, given.length + 4)
    const nothing = await client.query({ text, values: [2, ...given.map(() => null)], rowMode: 'array' })
    equal(new Set(nothing.rows[0].slice(1, -3)), new Set([null]))
    const again = await client.query({ text: 'select * from n_types where id = 1', rowMode: 'array' })
    equal(again.rows[0].slice(1, -3), given)
    const binary = await client.query({ text: 'select $1::int as i, true as b, $2::text as t', values: [7, 'ž'], binary: true })
    equal(binary.rows, [{ i: 7, b: true, t: 'ž' }])
    await refused('23514', client.query('insert into n_types (id, s) values (9, $1)', [10]))
    if (await one(client, "select 1 from pg_available_extensions where name = 'vector'")) {
      await client.query('create extension if not exists vector')
      await table(client, 'n_vectors', 'id int primary key, v vector(3)')
      for (let n = 0; n < 10; n++) await client.query('insert into n_vectors values ($1, $2)', [n, `[${n},0,0.5]`])
      equal(await one(client, 'select v::text from n_vectors order by v <-> $1 limit 1', ['[7,0,0.5]']), '[7,0,0.5]')
    }
  })
})

CASES.push(async function cursorsWithRowLimits() {
  await using(2, async (client, other) => {
    // Parse, Bind, Describe, Flush, then Execute(10) and Flush again and again; Sync only at the end.
    const cursor = client.query(new Cursor('select n from generate_series(1, $1::int) n', [1005], { rowMode: 'array' }))
    let count = 0
    for (;;) {
      const rows = await cursor.read(10)
      if (rows.length === 0) break
      rows.forEach(([n]) => equal(n, (count += 1)))
      if (count % 200 === 0) equal(await one(other, 'select 1'), 1)
    }
    equal(count, 1005)
    await cursor.close()
    equal(await one(client, 'select 1'), 1)
    // Closed in the middle, and an error on the way.
    const early = client.query(new Cursor('select generate_series(1, 1000000)'))
    equal((await early.read(5)).length, 5)
    await early.close()
    const broken = client.query(new Cursor('select 1 / (10 - n) from generate_series(1, 20) n'))
    equal((await broken.read(5)).length, 5)
    await refused('22012', broken.read(10))
    equal(await one(client, 'select 2'), 2)
    // Two in one transaction, one after the other, with a write in between.
    await table(client, 'n_cursor')
    await client.query('begin')
    for (const turn of [1, 2]) {
      const inside = client.query(new Cursor('select generate_series(1, 100) as n'))
      equal((await inside.read(30)).at(-1), { n: 30 })
      await inside.close()
      await client.query('insert into n_cursor values ($1)', [turn])
    }
    await client.query('commit')
    equal(await one(other, 'select count(*)::int from n_cursor'), 2)
  })
})

CASES.push(async function streamsOfLargeResults() {
  await using(1, async (client) => {
    const text = "select n, repeat('x', 50) as t from generate_series(1, $1::int) n"
    const stream = client.query(new QueryStream(text, [50_000], { batchSize: 500, highWaterMark: 500 }))
    let sum = 0
    for await (const row of stream) sum += row.n
    equal(sum, (50_000 * 50_001) / 2)
    let seen = 0
    for await (const _row of client.query(new QueryStream(text, [50_000]))) {
      // Leaving the loop destroys the stream.
      if ((seen += 1) === 10) break
    }
    equal(await one(client, 'select 3'), 3)
    const big = 'x'.repeat(4 << 20)
    equal((await one(client, 'select $1::text', [big])).length, big.length)
  })
})

CASES.push(async function namedQueriesOfTwoSessions() {
  await using(2, async (first, second) => {
    for (let turn = 0; turn < 5; turn++) {
      equal((await first.query({ name: 'same', text: 'select $1::int + 1 as a', values: [turn] })).rows, [{ a: turn + 1 }])
      equal((await second.query({ name: 'same', text: "select $1::text || 'x' as b", values: ['a'] })).rows, [{ b: 'ax' }])
    }
    await table(first, 'n_ddl')
    await first.query("insert into n_ddl values (1, 'a')")
    const all = (name) => ({ name, text: 'select * from n_ddl where id = $1', values: [1] })
    equal((await first.query(all('all'))).rows, [{ id: 1, t: 'a' }])
    await second.query('alter table n_ddl add column n int default 5')
    // As with one server: the new row, or 0A000; never the old shape.
    const rows = await first.query(all('all')).then(
      ({ rows }) => rows,
      (error) => {
        equal(error.code, '0A000', error.stack)
        return null
      },
    )
    if (rows) equal(rows, [{ id: 1, t: 'a', n: 5 }])
    equal((await first.query(all('all again'))).rows, [{ id: 1, t: 'a', n: 5 }])
    // SQL's PREPARE beside the protocol's, of one name.
    await second.query("prepare mine as select 'sql' as s")
    equal((await first.query({ name: 'mine', text: "select 'protocol' as s" })).rows, [{ s: 'protocol' }])
    equal((await second.query('execute mine')).rows, [{ s: 'sql' }])
    for (let n = 0; n < 100; n++) equal((await first.query({ name: `n${n}`, text: `select ${n} as n` })).rows, [{ n }])
  })
})

CASES.push(async function queriesQueuedTogether() {
  await using(1, async (client) => {
    await table(client, 'n_queue')
    const good = client.query('insert into n_queue values ($1)', [1])
    const bad = client.query('insert into n_queue values ($1)', [1])
    const after = client.query('insert into n_queue values ($1)', [2])
    await good
    await refused('23505', bad)
    await after
    equal(await one(client, 'select count(*)::int from n_queue'), 2)
    const results = await client.query('select 1 as a; select 2 as b, 3 as c')
    equal(results.map(({ rows }) => rows), [[{ a: 1 }], [{ b: 2, c: 3 }]])
    // Several statements in one text, the second fails: nothing of the first stays.
    await refused('23505', client.query('insert into n_queue values (3); insert into n_queue values (1)'))
    equal(await one(client, 'select count(*)::int from n_queue'), 2)
    equal(await one(client, '', []), undefined)
  })
})

CASES.push(async function transactionsAndErrors() {
  await using(2, async (client, other) => {
    await table(client, 'n_err', 'id int primary key, parent int constraint n_parent references n_err, n int check (n > 0)')
    await client.query('begin')
    await client.query('insert into n_err values (1, null, 1)')
    await client.query('savepoint s')
    const twice = await refused('23505', client.query('insert into n_err values ($1, null, 1)', [1]))
    equal([twice.constraint, twice.table, twice.severity], ['n_err_pkey', 'n_err', 'ERROR'])
    await refused('25P02', client.query('select 1'))
    await client.query('rollback to s')
    equal(await one(other, 'select count(*)::int from n_err'), 0)
    await client.query('commit')
    // Read after one's own write, on another connection too.
    equal(await one(other, 'select count(*)::int from n_err'), 1)
    equal((await refused('23503', client.query('insert into n_err values (2, 9, 1)'))).constraint, 'n_parent')
    equal((await refused('42601', client.query("select 'ž' fromm t"))).position, '18')
    await refused('42P01', client.query('select * from n_no_such where a = $1', [1]))
    await refused('22P02', client.query('select $1::int', ['x']))
    assert(await one(client, 'select 1') === 1)
    await other.query('begin; select * from n_err where id = 1 for update')
    await refused('55P03', client.query('select * from n_err where id = $1 for update nowait', [1]))
    await other.query('rollback')
    for (const each of [client, other]) await each.query('begin isolation level repeatable read; table n_err')
    await client.query('update n_err set n = 2; commit')
    await refused('40001', other.query('update n_err set n = 3'))
    await other.query('rollback')
    await refused('0A000', client.query('select lo_create(0)'))
  })
})

CASES.push(async function settingsDoNotLeak() {
  const look = "select current_user::text, current_setting('timezone'), coalesce(current_setting('n.own', true), '')"
  const see = async (client) => (await client.query({ text: look, rowMode: 'array' })).rows[0]
  const usual = await using(1, async (client) => {
    await client.query('drop role if exists n_role; create role n_role')
    return see(client)
  })
  await using(POOL, async (...busy) => {
    for (const client of busy) {
      await client.query("set role n_role; set timezone to 'Asia/Tokyo'")
      await client.query("select set_config('n.own', $1, false)", ['x'])
    }
    for (let n = 0; n < POOL; n++) await using(1, async (client) => equal(await see(client), usual))
    for (const client of busy) equal(await see(client), ['n_role', 'Asia/Tokyo', 'x'])
    await busy[0].query('begin; set local timezone to utc; set role none')
    equal((await see(busy[0])).slice(0, 2), [GIVEN.user, 'UTC'])
    await busy[0].query('rollback')
    equal(await see(busy[0]), ['n_role', 'Asia/Tokyo', 'x'])
  })
  await using(1, (client) => client.query('drop role n_role'))
})

CASES.push(async function notificationsAndNotices() {
  await using(2, async (ear, mouth) => {
    const heard = []
    const noted = []
    ear.on('notification', ({ channel, payload }) => heard.push([channel, payload]))
    ear.on('notice', ({ severity, message }) => noted.push([severity, message]))
    await ear.query('listen n_channel')
    await mouth.query("begin; notify n_channel, 'one'; select pg_notify('n_channel', 'žwei'); commit")
    await until('both are heard', () => heard.length >= 2)
    equal(heard, [['n_channel', 'one'], ['n_channel', 'žwei']])
    await ear.query("do $$ begin raise warning 'noted'; end $$")
    equal(noted, [['WARNING', 'noted']])
    await ear.query('create temp table n_temp as select 5 as n')
    equal(await one(ear, 'select n from n_temp'), 5)
    await refused('42P01', mouth.query('table n_temp'))
    equal(await one(ear, 'select pg_try_advisory_lock(81)'), true)
    equal(await one(mouth, 'select pg_try_advisory_lock(81)'), false)
    await ear.query('select pg_advisory_unlock_all()')
    equal(await one(mouth, 'select pg_try_advisory_lock(81)'), true)
  })
})

CASES.push(async function timeoutsAndCancels() {
  await using(1, async (client) => {
    await refused('57014', client.query('select pg_sleep(30)'))
    equal(await one(client, 'select 1'), 1)
  }, { statement_timeout: 200 })
  await using(2, async (client, other) => {
    // It asks for its process, so the writer runs it, whose activity is looked at.
    const sleep = 'select pg_sleep(30), 81, pg_backend_pid()'
    // Its own way: a second connection that sends CancelRequest with the first one's key.
    for (let turn = 0; turn < 3; turn++) {
      const query = new pg.Query(sleep)
      const ended = new Promise((resolve) => query.once('error', resolve))
      client.query(query)
      const asleep = `select 1 from pg_stat_activity where query = '${sleep}' and state = 'active'`
      await until('it sleeps', async () => await one(other, asleep))
      new pg.Client(GIVEN).cancel(client, query)
      equal((await ended).code, '57014')
      equal(await one(client, 'select 1'), 1)
    }
    // The driver gives up on its own clock and leaves.
    const impatient = await connect({ query_timeout: 200 })
    await assert.rejects(impatient.query('select pg_sleep(1)'), /timeout/)
    await impatient.end()
  })
})

CASES.push(async function manyClientsAtOnce() {
  const [clients, rounds] = [40, 5]
  await using(1, (client) => table(client, 'n_crowd', 'id int primary key, client int'))
  await using(clients, (...all) =>
    Promise.all(all.map(async (client, number) => {
      for (let turn = 0; turn < rounds; turn++) {
        const key = number * rounds + turn
        await client.query('begin')
        await client.query('insert into n_crowd values ($1, $2)', [key, number])
        await client.query('commit')
        equal(await one(client, 'select client from n_crowd where id = $1', [key]), number)
      }
    })))
  const pool = new pg.Pool({ ...GIVEN, max: 20 })
  const found = await Promise.all(Array.from({ length: 400 }, (_, n) => one(pool, 'select $1::int', [n])))
  equal(found, found.map((_, n) => n))
  equal(await one(pool, 'select count(*)::int from n_crowd'), clients * rounds)
  await pool.end()
})

CASES.push(async function aClientVanishes() {
  await using(1, async (client) => {
    await table(client, 'n_gone')
    await client.query("insert into n_gone values (1, 'a')")
    for (const way of ['destroy', 'resetAndDestroy']) {
      const gone = await connect()
      await gone.query("begin; insert into n_gone values (2, 'lost'); update n_gone set t = 'lost' where id = 1")
      await gone.query('select pg_advisory_lock(82)')
      // A portal half read, too.
      const cursor = gone.query(new Cursor('select generate_series(1, 1000)'))
      equal((await cursor.read(10)).length, 10)
      gone.connection.stream[way]()
      await client.query("set lock_timeout = '20s'")
      await client.query("update n_gone set t = 'b' where id = 1")
      equal((await client.query('table n_gone')).rows, [{ id: 1, t: 'b' }])
      await until('its lock is free', () => one(client, 'select pg_try_advisory_lock(82)'))
      await client.query('select pg_advisory_unlock(82)')
    }
  })
})

const failed = []
for (const run of CASES) {
  const name = run.name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  if (process.argv.length > 2 && !process.argv.slice(2).some((part) => name.includes(part))) continue
  const began = Date.now()
  console.log(`${name} ...`)
  const clock = new AbortController()
  const late = pause(CASE_MS, null, { signal: clock.signal }).then(
    () => assert.fail(`the case did not end within ${CASE_MS / 1000} s`),
    () => {},
  )
  try {
    await Promise.race([run(), late])
    console.log(`${name}: ${((Date.now() - began) / 1000).toFixed(2)} s`)
  } catch (error) {
    console.log(`${name}: FAILED\n${error.stack}`)
    failed.push(name)
  }
  clock.abort()
}
if (failed.length > 0) console.log(`${failed.length} failed: ${failed.join(', ')}`)
// A connection that hangs must not keep the process.
process.exit(failed.length > 0 ? 1 : 0)
