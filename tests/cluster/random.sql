create type mood as enum ('sad', 'ok', 'happy');
create domain positive as int check (value > 0);
create domain short_text as varchar(2000) check (value <> 'forbidden');
create type pair as (a int, b text, c positive);
create type floats as range (subtype = float8);

create table accounts (
  id int primary key, owner text default 'nobody', balance numeric(20, 4) not null default 1000 check (balance > -5000),
  touched timestamptz default now(), r float8 default random());
insert into accounts (id, owner) select g, 'owner ' || g from generate_series(0, 39) g;

create table audit (what text, id int, old_balance numeric, new_balance numeric, at timestamptz, r float8);
create function audit() returns trigger language plpgsql as $$
begin
  insert into audit values (tg_op, coalesce(new.id, old.id), old.balance, new.balance, clock_timestamp(), random());
  return null;
end $$;
create trigger audit after insert or update or delete on accounts for each row execute function audit();
create table statements (what text, at timestamptz default clock_timestamp(), changed bigint);
create function note_statement() returns trigger language plpgsql as $$
begin
  insert into statements (what, changed) select tg_op, count(*) from now_there;
  return null;
end $$;
create trigger note after update on accounts referencing new table as now_there
  for each statement execute function note_statement();

create function transfer(a int, b int, amount numeric) returns void language plpgsql as $$
begin
  update accounts set balance = balance - amount where id = a;
  begin
    update accounts set balance = balance + amount, owner = owner || '.' where id = b;
    if not found then raise exception 'no account %', b; end if;
    if length((select owner from accounts where id = b)) > 40 then raise exception using errcode = 'ZZ001'; end if;
  exception when sqlstate 'ZZ001' then
    update accounts set balance = balance + amount, owner = 'again' where id = b;
  end;
end $$;

create table keyless (a int, b text, c json, d float8);
create table serials (id bigserial primary key, v text default gen_random_uuid()::text, r float8 default random(),
  at timestamptz default clock_timestamp(), note text);
create table identities (id int generated always as identity primary key, v text, r float8 default random());
create table loose (k int primary key, id int generated always as identity, other int, v text);
alter table loose alter v set storage external;
create table made (a int primary key, b int generated always as (a * 2) stored, d text,
  c text generated always as (upper(d)) stored);

create table parts (id int, region int, v text, primary key (id, region)) partition by list (region);
create table parts_1 partition of parts for values in (1);
create table parts_2 (v text, extra_gone int, region int not null, id int not null);
alter table parts_2 drop column extra_gone;
alter table parts attach partition parts_2 for values in (2);
create table parts_more partition of parts for values in (3, 4, 5) partition by hash (id);
create table parts_more_0 partition of parts_more for values with (modulus 2, remainder 0);
create table parts_more_1 partition of parts_more for values with (modulus 2, remainder 1);
create table parts_default partition of parts default;

create table ranks (id int primary key, rank int, place int,
  unique (rank) deferrable initially deferred, unique (place) deferrable initially immediate);
insert into ranks select g, g, -g from generate_series(0, 9) g;
create table deferred_key (id int, v text, primary key (id) deferrable initially deferred);

create table parents (id int primary key, at timestamptz default now());
create table children (id int primary key, parent int references parents on update cascade on delete cascade
  deferrable initially deferred, v text, stamp uuid);
create function stamp() returns trigger language plpgsql as $$
begin new.stamp := gen_random_uuid(); return new; end $$;
create trigger stamp before insert or update on children for each row execute function stamp();

create table big (id int primary key, small int, big text, bytes bytea, doc jsonb);
alter table big alter big set storage external, alter bytes set storage external, alter doc set storage external;

create table rich (
  id int primary key, tags text[], matrix int[], feeling mood, feelings mood[], who pair, people pair[], nice positive,
  nices positive[], label short_text, doc jsonb, raw bytea, amount numeric, span interval, during tstzrange,
  many int4multirange, reach floats, f4 float4, f8 float8, net inet, bits bit varying(20), spot point, search tsvector,
  at timestamptz default clock_timestamp());
create index on rich using gin (tags);
create index on rich using gist (during);
create index on rich (lower(label));
create function rich_row(n int) returns rich language sql volatile as $$
  select n, array['a', 'b''c', '"d"', '\e', null, md5(random()::text)], '[0:1][2:3]={{1,2},{3,4}}'::int[],
    (enum_range(null::mood))[1 + (random() * 2)::int], array['ok', 'sad']::mood[], row(n, 'x,"y"', 1)::pair,
    array[row(1, null, 2), row(null, '(', 3)]::pair[], 1 + n, array[1, 2]::positive[], 'label ' || n,
    jsonb_build_object('n', n, 'r', random(), 'u', E'\u00fc\n'), decode(md5(random()::text), 'hex'),
    (random() * 1e20)::numeric, make_interval(months => n, days => -n, secs => random() * 1e5),
    tstzrange(now() - make_interval(days => n), case when n % 2 = 0 then null else now() end),
    format('{[%s,%s),[100,200)}', n, n + 5)::int4multirange, floatrange.r, random()::float4, random() - 0.5,
    '10.0.0.1/8'::inet + n, n::bit(10)::bit varying, point(random(), n), to_tsvector('simple', 'a quick fox ' || n),
    clock_timestamp()
  from (select floats(0, random() * 10 + 1) as r) floatrange;
$$;

create table limits (most float8);
insert into limits values (1e6);
create function within_limits(v float8) returns boolean language plpgsql as $$
begin return v < (select most from limits); end $$;
create table checked (id positive primary key, v float8 check (within_limits(v)));
create function half(v float8) returns float8 immutable language sql as 'select v / 2';
create index on checked (half(v));

create table settings_seen (at timestamptz, d date, i interval, f float8, b bytea, n int);

create procedure churn(n int) language plpgsql as $$
begin
  for i in 1..n loop
    insert into serials (v) values ('churn ' || random());
    if i % 3 = 0 then rollback; else commit; end if;
  end loop;
end $$;
