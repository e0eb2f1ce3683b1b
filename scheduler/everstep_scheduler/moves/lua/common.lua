-- What all scripts share. It is put before each of them; the whole is one script, its version is its hash.
-- KEYS[1]  the stem of our keys, `everstep:{0}:`. H  what `header` or `plain` found in ARGV; `rq` in it is RQ's prefix.
-- Places of an open task:  unmade (in the list, no record) | job | lease | wake | parked | child | asked | failed | stopped | done
-- A record: p place, a attempt, l lost, x expiries, k losses while alone, s suspect, t token, o owner, L lease ms,
--           u unserved node it is parked for, if not its own,
--           j job id, q queue, n node, w timeout s, r reason, i questions asked, an answers so far (entry ids, spaces),
--           cl what it called (`<run> <thread>`), ct 1 once it has told how that rested, u length of the thread's `over` when it asked,
--           e its first effect (entry id)
local S, call = KEYS[1], redis.call
-- For what only shows how things are, in RQ's registries and in ours for people, and for bells: keys of another type than
-- we write must not end a move half way.
local show = redis.pcall
local R = H.rq .. ':'
local clock = call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)
local LREM_MAX, REFUSED_MAX, PAGES_MAX, NAMED_MAX = 1000, 10, 5, 8192
local MOVE_MAX, WAKES_MAX, REOPEN_PAGE, REOPEN_PAGES_MAX, LOSSES_ALONE_MAX = 250, 100, 100, 20, 3
local FUNCTION = 'everstep.run_node'
local YEAR_S, HOUR_S, DAY_MS = 31536000, 3600, 86400000
local threads, stored, fresh, pushed, moved = {}, {}, {}, {}, 0
local coming, counted = {}, {}
local out = { leases = {}, refused = {} }

local today
local function now_iso()
  today = today or iso(NOW)
  return today
end

-- Both sentinels stand, else our or RQ's keys were lost; second answer: is RQ suspended?
local function alive()
  local found = call('MGET', S .. 'alive', R .. 'everstep:alive', R .. 'suspended')
  return found[1] and found[2], found[3]
end

-- One thread's hash, read once a script; numbers are numbers.
local NUMBERS = { n = 1, step = 1, base = 1, left = 1, width = 1, jobs = 1, failed = 1, asked = 1, halted = 1 }
local function load(thread)
  if threads[thread] then return threads[thread] end
  local flat = call('HGETALL', S .. 'thread:' .. thread)
  if #flat == 0 then return nil end
  local T, was = {}, {}
  for i = 1, #flat, 2 do
    local value = NUMBERS[flat[i]] and tonumber(flat[i + 1]) or flat[i + 1]
    T[flat[i]], was[flat[i]] = value, value
  end
  T.asked, T.halted = T.asked or 0, T.halted or 0
  threads[thread], stored[thread] = T, was
  return T
end

-- Only what changed is written: the rest would be most of what the append-only file gets.
local function save()
  for thread, T in pairs(threads) do
    local flat, was = {}, stored[thread] or {}
    for name, value in pairs(T) do
      if was[name] ~= value then
        flat[#flat + 1] = name
        flat[#flat + 1] = value
      end
    end
    if #flat > 0 then call('HSET', S .. 'thread:' .. thread, unpack(flat)) end
  end
end

-- How many jobs stand in a queue, summed up over the script.
local function count(q, by) counted[q] = (counted[q] or 0) + by end

local function write_counts()
  for q, by in pairs(counted) do
    if by ~= 0 then show('HINCRBY', S .. 'counts', q, by) end
  end
end

local function record(thread, task)
  local found = call('HGET', S .. 'open:' .. thread, task)
  return found and cjson.decode(found)
end

-- A table from JSON that may be anything; nil for what is none.
local function decoded(text)
  local good, found = pcall(cjson.decode, text)
  return good and type(found) == 'table' and found or nil
end

-- A number that JSON can say and that can be counted on: Lua reads `inf` and `nan`, too.
local function counts(value) return type(value) == 'number' and math.abs(value) < 2 ^ 53 end

-- The record behind a field of `open:*`, nil for what we did not write.
local function sound(text)
  local rec = decoded(text)
  if rec and type(rec.p) == 'string' and type(rec.n) == 'string' and type(rec.q) == 'string' and counts(rec.a) and counts(rec.w)
    and (rec.p ~= 'lease' or (type(rec.t) == 'string' and type(rec.o) == 'string'))
    and (rec.cl == nil or type(rec.cl) == 'string') then
    return rec
  end
end

-- What every script counts on in a thread's hash.
local TEXTS = { 'jid', 'digest', 'birth', 'status', 'graph', 'queue', 'run', 'rec' }
local function whole(T)
  for name in pairs(NUMBERS) do
    if not counts(T[name]) then return false end
  end
  for _, name in ipairs(TEXTS) do
    if not T[name] then return false end
  end
  return true
end

-- The thread and the open task that a name in an index leads to. Nothing where their keys are not what we wrote: one such
-- thread must not keep all others from their work. `everstep recover` makes its indexes anew.
local function opened(thread, task)
  local good, T = pcall(load, thread)
  if not (good and T and whole(T)) then return end
  local text = show('HGET', S .. 'open:' .. thread, task)
  local rec = type(text) == 'string' and sound(text)
  if rec then return T, rec end
end

local function keep(thread, task, rec)
  call('HSET', S .. 'open:' .. thread, task, cjson.encode(rec))
end

local function queue_of(rec) return rec.s and rec.q .. '.suspect' or rec.q end

-- A fact that says something plain; facts with values come from the caller, hashed.
local function fact(thread, T, kind, ...)
  return call('XADD', S .. 'log:' .. thread, T.n .. '-*', 'v', '1', 'kind', kind, 'at', NOW, 'run', T.run, ...)
end

-- The same where other threads are moved by the same call: nothing, and nothing written, if the log refuses the entry.
local function try_fact(thread, T, run, kind, ...)
  local id = redis.pcall('XADD', S .. 'log:' .. thread, T.n .. '-*', 'v', '1', 'kind', kind, 'at', NOW, 'run', run, ...)
  return type(id) == 'string' and id
end

-- Entries from the caller: H.entries = { {id, kind, number of arguments}, ... }, their arguments follow ARGV[1].
local function append(thread)
  local at, ids = AT, {}
  for i, e in ipairs(H.entries or {}) do
    ids[i] = call('XADD', S .. 'log:' .. thread, e[1], 'v', '1', 'kind', e[2], 'at', NOW, unpack(ARGV, at, at + e[3] - 1))
    at = at + e[3]
  end
  return ids
end

local function status(thread, T, to)
  if T.status ~= to then
    if T.status then show('ZREM', S .. 'threads:' .. T.status, thread) end
    show('ZADD', S .. 'threads:' .. to, NOW, thread)
    T.status = to
  end
end

local function run_is(thread, run, word)
  local key = S .. 'runs:' .. thread
  local found = show('HGET', key, run)
  if type(found) == 'string' then call('HSET', key, run, (string.gsub(found, '^%S+', word, 1))) end
end

-- A job as RQ 3.0 knows it. Its id is never made twice: attempt, and a salt that the caller drew for this call.
-- `started`: it was never queued, its worker has it already.
local function make_job(thread, T, task, rec, started)
  local q = queue_of(rec)
  local id = T.jid .. '-' .. T.n .. '-' .. task .. '-' .. (rec.a + 1) .. '-' .. H.salt
  if rec.j and rec.j ~= id then call('DEL', R .. 'job:' .. rec.j) end
  rec.j = id
  local date = now_iso()
  local named = cjson.encode({ thread = thread, n = T.n, task = task, keys = S })
  local begun = started and { 'worker_name', H.owner, 'started_at', date } or {}
  call('HSET', R .. 'job:' .. id,
    'everstep', named, 'data', '["' .. FUNCTION .. '",null,[],' .. named .. ']',
    'origin', q, 'status', started and 'started' or 'queued', 'timeout', rec.w > 0 and math.ceil(rec.w) or -1, 'created_at', date, 'enqueued_at', date,
    'description', T.graph .. '/' .. thread .. '#' .. T.n .. ' ' .. rec.n, 'result_ttl', 0, unpack(begun))
  return id, q
end

local function push(thread, T, task, rec, front)
  rec.p, rec.t, rec.o, rec.r = 'job', nil, nil, nil
  local id, q = make_job(thread, T, task, rec)
  if call(front and 'LPUSH' or 'RPUSH', R .. 'queue:' .. q, id) == 1 then
    show('SADD', R .. 'queues', R .. 'queue:' .. q)
  end
  count(q, 1)
  T.jobs = T.jobs + 1
  moved = moved + 1
  pushed[q] = (pushed[q] or 0) + 1
  fresh[id] = { thread, task, rec }
  keep(thread, task, rec)
end

local function unqueue(T, rec)
  count(queue_of(rec), -1)
  T.jobs = math.max(T.jobs - 1, 0)
end

-- An answer may come before its question, for a task that may have no record yet: `early` in the thread's hash holds it.
local function answers_of(T, task, rec)
  if (T.early or '') == '' or T.early_task ~= task then return rec.an or '' end
  return rec.an and T.early .. ' ' .. rec.an or T.early
end

local function row(thread, T, task, rec)
  return { rec.t, thread, T.n, T.digest, task, rec.n, rec.a, rec.l or 0, rec.q, rec.w, T.run, T.graph, T.width, rec.j,
    T.birth, T.rec, T.base, NOW, rec.s and 1 or 0, T.conf or T.rec, answers_of(T, task, rec), rec.c or '', rec.cl or '', rec.ct or 0,
    T.over or '', rec.e or '' }
end

local function lease(thread, T, task, rec, token)
  local made = not rec.j
  if made then make_job(thread, T, task, rec, not H.take) end
  rec.p, rec.a, rec.t, rec.o, rec.L = 'lease', rec.a + 1, token, H.owner, H.lease_ms
  keep(thread, task, rec)
  call('ZADD', S .. 'leases', NOW + rec.L, token)
  call('HSET', S .. 'lease', token, task .. ' ' .. thread)
  call('HSET', S .. 'held:' .. H.owner, token, H.round or 0)
  if not H.take then
    show('ZADD', R .. 'wip:' .. queue_of(rec), math.floor((NOW + rec.L) / 1000) + HOUR_S, rec.j .. ':' .. token)
    if not made then
      call('HSET', R .. 'job:' .. rec.j, 'status', 'started', 'worker_name', H.owner, 'started_at', now_iso())
    end
  end
  out.leases[#out.leases + 1] = row(thread, T, task, rec)
end

-- Take a lease back, whoever holds it. The record still needs a new place.
local function unlease(rec)
  call('ZREM', S .. 'leases', rec.t)
  call('HDEL', S .. 'lease', rec.t)
  call('HDEL', S .. 'held:' .. rec.o, rec.t)
  if rec.j then show('ZREM', R .. 'wip:' .. queue_of(rec), rec.j .. ':' .. rec.t) end
end

local function forget_job(rec)
  if rec.j then call('DEL', R .. 'job:' .. rec.j) end
  rec.j = nil
end

-- Places `failed` and `parked` are RQ's failed registry, with the reason for people.
local function show_failed(thread, T, task, rec, reason)
  if not rec.j then make_job(thread, T, task, rec) end
  rec.o, rec.r = nil, reason
  call('HSET', R .. 'job:' .. rec.j, 'status', 'failed', 'ended_at', now_iso(), 'exc_info', reason)
  show('ZADD', R .. 'failed:' .. queue_of(rec), math.floor(NOW / 1000) + YEAR_S, rec.j)
end

local function hide_failed(rec)
  if rec.j then show('ZREM', R .. 'failed:' .. queue_of(rec), rec.j) end
end

-- A task as `wakes` and `parked:*` name it. Tasks of later steps have the same names, so n belongs to it.
local function place_of(thread, T, task) return T.n .. ' ' .. task .. ' ' .. thread end

-- The open task that such a name stands for; nothing if its step is over.
local function at_place(member)
  local n, task, thread = string.match(member, '^(%d+) (%S+) (.*)$')
  if not thread then return end
  local T, rec = opened(thread, task)
  if T and T.n == tonumber(n) then return thread, T, task, rec end
end

local function unpark(thread, T, task, rec)
  local name = T.graph .. ':' .. (rec.u or rec.n)
  rec.u = nil
  if call('LREM', S .. 'parked:' .. name, 1, place_of(thread, T, task)) > 0 and call('HINCRBY', S .. 'parked', name, -1) <= 0 then
    call('HDEL', S .. 'parked', name)
  end
  hide_failed(rec)
end

local function unwake(thread, T, task, rec)
  call('ZREM', S .. 'wakes', place_of(thread, T, task))
  if rec.j then show('ZREM', R .. 'scheduled:' .. queue_of(rec), rec.j) end
end

-- Take a task out of the place it is in, job kept.
local function leave(thread, T, task, rec, listed)
  if rec.p == 'lease' then unlease(rec)
  elseif rec.p == 'wake' then unwake(thread, T, task, rec)
  elseif rec.p == 'parked' then unpark(thread, T, task, rec)
  elseif rec.p == 'failed' then hide_failed(rec)
  elseif rec.p == 'job' then
    local key = R .. 'queue:' .. queue_of(rec)
    unqueue(T, rec)
    -- in a long list the id stays: without its task it is dropped when it comes up, and the audit takes it out before
    if listed and call('LLEN', key) <= LREM_MAX then call('LREM', key, 1, rec.j) end
  end
end

-- An inline caller drives the run that begins, and says so for a lease; '' and nil: nobody does.
local function gives_word(T, caller)
  T.own = caller or ''
  if T.own ~= '' then call('ZADD', S .. 'callers', NOW + H.lease_ms, T.own) end
end

-- Does an inline caller still drive its run?  alive | gone | unknown, and its word: until when it said so, negative when
-- it left, nothing if none is known. As with leases: nobody is gone whose word ran out while nobody could give one.
local function driven(caller)
  local score = show('ZSCORE', S .. 'callers', caller)
  local till = type(score) == 'string' and tonumber(score) or nil
  if H.here[caller] or (till and H.seen[caller] and till > H.seen[caller]) then return 'alive', till end
  if till and till < 0 then return 'gone', till end
  if till and till > NOW then return 'unknown', till end
  local swept = show('HMGET', S .. 'sweep', 'at', 'hold')
  local at, hold = tonumber(swept[1] or nil), tonumber(swept[2] or nil) or 0
  if not at or NOW - at > math.max(H.lease_ms / 2, 500) or hold > NOW then return 'unknown', till end
  return 'gone', till
end

local function fresh_record(node, queue, timeout_s) return { p = 'unmade', a = 0, n = node, q = queue, w = tonumber(timeout_s) or 0 } end

-- One page of what failed or was stopped, given as if it were new; `e.over`: also of what asked before the Command that made
-- `over` so long, for it sees another state now. A page is moved whole. False: the next call goes on.
local function reopen_page(thread, key, e, element, give)
  if moved + REOPEN_PAGE > MOVE_MAX then
    call('LPUSH', key, element)
    return false
  end
  local page = call('HSCAN', S .. 'open:' .. thread, e.reopen, 'COUNT', REOPEN_PAGE)
  if page[1] ~= '0' then call('LPUSH', key, cjson.encode({ reopen = page[1], over = e.over })) end
  for i = 1, #page[2], 2 do
    local rec = sound(page[2][i + 1])
    local asked = rec and rec.p == 'asked' and counts(e.over) and (rec.u or 0) < e.over
    if rec and (rec.p == 'failed' or rec.p == 'stopped' or asked) then
      if rec.p == 'failed' then hide_failed(rec) end
      rec.i, rec.u = nil, nil
      give(page[2][i], rec)
    end
  end
  return true
end

-- The tasks of a part, run-length, from `e.from` on.
local function make_part(key, e, more, give)
  local i, upto = e.from, 0
  for _, kind in ipairs(decoded(e.tasks) or {}) do
    upto = upto + kind[4]
    while i < upto and more() do
      give('s' .. e.k .. '_' .. i, fresh_record(kind[1], kind[2], kind[3]))
      i = i + 1
    end
  end
  if i < upto then
    e.from = i
    call('LPUSH', key, cjson.encode(e))
  end
end

-- Give unmade tasks a record, one by one, to whatever `give(task, rec)` does with them, while it says so. A call looks at
-- so many elements and pages; where it did not come to the end with nothing moved, the sweep goes on.
local function make(thread, T, more, give)
  local key, pages, looked = S .. 'unmade:' .. thread, 0, 0
  while looked < MOVE_MAX and pages < REOPEN_PAGES_MAX and more() do
    local element = call('LPOP', key)
    if not element then return end
    looked = looked + 1
    local e = decoded(element) or {}
    if e.reopen then
      pages = pages + 1
      if not reopen_page(thread, key, e, element, give) then return end
    elseif e.part then
      make_part(key, e, more, give)
    elseif e.task then
      give(e.task, fresh_record(e.node, e.queue, e.timeout_s))
    end
  end
  if (pages == REOPEN_PAGES_MAX or (looked == MOVE_MAX and moved == 0)) and call('EXISTS', key) == 1
    and not call('LPOS', S .. 'cleanings', thread) then
    call('RPUSH', S .. 'cleanings', thread)
  end
end

-- Jobs of a wide step are made by whoever passes: so that at least 250 of it are queued, at most 250 moves a call.
local function make_jobs(thread, T)
  make(thread, T, function() return T.jobs < MOVE_MAX and moved < MOVE_MAX end,
    function(task, rec) push(thread, T, task, rec) end)
end

-- Open the tasks of the checkpoint just written: `next` as its JSON says, H.parts = {entry id -> its `tasks` JSON}.
-- `jobs`: make jobs of the first ones at once, else all of them stay unmade. Without Sends they are only `coming`: refill
-- may lease them where nothing waits ahead of them; the others are pushed before the script ends.
local function open_step(thread, T, rows, jobs)
  local key, width = S .. 'unmade:' .. thread, 0
  local few = jobs and not H.parts and moved + #rows <= MOVE_MAX
  T.jobs, T.failed, T.asked, T.halted, T.early = 0, 0, 0, 0, ''
  if T.over then
    call('HDEL', S .. 'thread:' .. thread, 'over')
    T.over = nil
  end
  for _, r in ipairs(rows) do
    if #r == 2 then
      call('RPUSH', key, cjson.encode({ part = r[1], k = string.match(r[1], '%-(%d+)$'), from = 0, tasks = H.parts[r[1]] }))
      width = width + r[2]
    else
      local rec = fresh_record(r[2], r[3], r[4])
      if few then coming[#coming + 1] = { thread, T, r[1], rec }
      elseif jobs and moved < MOVE_MAX then push(thread, T, r[1], rec)
      else call('RPUSH', key, cjson.encode({ task = r[1], node = r[2], queue = r[3], timeout_s = r[4] })) end
      width = width + 1
    end
  end
  T.width, T.left = width, width
  if jobs and not few then make_jobs(thread, T) end
end

local function push_coming()
  for _, c in ipairs(coming) do
    if c then push(unpack(c)) end
  end
  coming = {}
end

-- What a task called is revoked after it: by the canceller, which is told of it, or by the sweep, which finds it here.
local function disown(rec)
  local run, called = string.match(rec.cl or '', '^(%S+) (.*)$')
  rec.ct = 1
  if not called then return end
  show('RPUSH', S .. 'revoked', cjson.encode({ run = run, thread = called }))
  out.children = out.children or {}
  out.children[#out.children + 1] = { called, run }
end

-- The tasks of steps that were given up leave their places, a few pages a call. The hash stays whole until its scan is
-- over, so that the cursor means something; a task that a scan shows twice has lost its job by then.
local function clean_discards(budget)
  for _ = 1, PAGES_MAX do
    local named = budget > 0 and call('LINDEX', S .. 'discards', 0)
    if not named then return end
    local d = decoded(named) or {}
    local key, stem = tostring(d.key), S .. 'discard:'
    local ours = string.sub(key, 1, #stem) == stem and type(d.thread) == 'string' and type(d.n) == 'number'
    local page = ours and show('HSCAN', key, tostring(d.cursor), 'COUNT', math.min(budget, MOVE_MAX / PAGES_MAX))
    if not page or page.err then page = { '0', {} } end
    for i = 1, #page[2], 2 do
      local rec = sound(page[2][i + 1])
      if rec and rec.p == 'child' then disown(rec) end
      if rec and rec.j and call('DEL', R .. 'job:' .. rec.j) == 1 then
        leave(d.thread, { graph = d.graph, n = d.n, jobs = 0 }, page[2][i], rec, true)
        budget = budget - 1
      end
    end
    if page[1] == '0' then
      if ours then call('UNLINK', key) end
      call('LPOP', S .. 'discards')
    else
      d.cursor = page[1]
      call('LSET', S .. 'discards', 0, cjson.encode(d))
    end
  end
end

-- Open tasks of a cancelled run leave their places, about 250 records a call, and wait for a run that continues. The
-- cursor is in the thread's hash, '' at the end; the canceller goes on with it, or the sweep.
local function withdraw(thread, T, cursor)
  local seen, pages = 0, 0
  repeat
    local page = call('HSCAN', S .. 'open:' .. thread, cursor, 'COUNT', 100)
    cursor, pages = page[1], pages + 1
    for i = 1, #page[2], 2 do
      local rec = sound(page[2][i + 1])
      seen = seen + 1
      if rec and rec.p ~= 'done' and rec.p ~= 'stopped' and rec.p ~= 'failed' and rec.p ~= 'asked' then
        if rec.p == 'child' then disown(rec) end
        leave(thread, T, page[2][i], rec, true)
        forget_job(rec)
        rec.p, rec.t, rec.o = 'stopped', nil, nil
        keep(thread, page[2][i], rec)
      end
    end
  until cursor == '0' or seen >= MOVE_MAX or pages >= PAGES_MAX
  T.cleaning = cursor == '0' and '' or cursor
end

-- All open tasks leave their places; what is too much for a call the sweep goes on with.
local function stop_all(thread, T)
  withdraw(thread, T, '0')
  if T.cleaning ~= '' then call('RPUSH', S .. 'cleanings', thread) end
end

-- The step under way is given up: its tasks leave their places, at most 250 now, the rest in the sweep.
local function discard_step(thread, T)
  local from = S .. 'open:' .. thread
  call('DEL', S .. 'unmade:' .. thread)
  if call('EXISTS', from) == 1 then
    local key = S .. 'discard:' .. H.salt .. ':' .. thread
    call('RENAME', from, key)
    call('RPUSH', S .. 'discards', cjson.encode({ key = key, cursor = '0', thread = thread, graph = T.graph or '', n = T.n }))
    clean_discards(MOVE_MAX)
  end
end

-- A run begins: its one task is open. `give` places it (a queue, or a lease for an inline caller).
local function begin(thread, T, run, rec_id, node, graph, queue)
  discard_step(thread, T)
  T.graph, T.queue, T.own = graph, queue, ''
  T.run, T.rec, T.conf, T.base = run, rec_id, rec_id, T.step
  T.width, T.left, T.jobs, T.failed, T.asked, T.halted, T.cleaning, T.early = 1, 1, 0, 0, 0, 0, '', ''
  status(thread, T, 'running')
  run_is(thread, run, 'running')
  return fresh_record(node, T.queue, 0)
end

-- A task that is open again: for the inline caller that made it so, else at the back of its queue, where refill may take
-- it if nothing waits ahead.
local function hand(thread, T, task, rec)
  local token = H.own and table.remove(H.tokens or {}, 1)
  if token then lease(thread, T, task, rec, token)
  elseif H.queues then coming[#coming + 1] = { thread, T, task, rec }
  else push(thread, T, task, rec) end
end

-- A run that a task of another thread called has come to its rest: that task is to look.
local function wake_caller(thread, T)
  local n, task, caller = string.match(T.parent or '', '^(%d+) (%S+) (.*)$')
  if not caller or caller == thread then return end
  local P, rec = opened(caller, task)
  if not rec or rec.p ~= 'child' or P.n ~= tonumber(n) or P.status ~= 'running' or rec.cl ~= T.run .. ' ' .. thread then return end
  if type(show('LLEN', R .. 'queue:' .. queue_of(rec))) == 'table' then return end -- can't be pushed to; doctor finds it
  hand(caller, P, task, rec)
end

-- A run ends. `done` is said by its last checkpoint, everything else by `run_rested`. Then the next queued input starts.
local function rest(thread, T, to, ...)
  if to ~= 'done' then fact(thread, T, 'run_rested', 'status', to, ...) end
  run_is(thread, T.run, to)
  status(thread, T, to)
  wake_caller(thread, T)
  local q
  for _ = 1, REFUSED_MAX do -- what is none of our elements is passed over
    local element = show('LPOP', S .. 'queued:' .. thread)
    q = type(element) == 'string' and (decoded(element) or {})
    if not q or (q.run and q.entry and q.node and q.graph and q.queue and q.task) then break end
    q = nil
  end
  if q then
    T.run, T.parent = q.run, q.parent or ''
    local step = T.step
    fact(thread, T, 'run_started', 'of', q.entry, 'step', step)
    local rec = begin(thread, T, q.run, q.entry, q.node, q.graph, q.queue)
    T.own = q.own or ''
    push(thread, T, q.task, rec)
  end
end

-- The run under way is stopped, and another one begins in the same script: inputs that wait stay behind that. Its tasks
-- are given up as it begins, so no commit of theirs passes any more.
local function stop_run(thread, T, actor)
  fact(thread, T, 'run_cancel_asked', 'actor', actor)
  fact(thread, T, 'run_rested', 'status', 'cancelled', 'actor', actor)
  run_is(thread, T.run, 'cancelled')
  status(thread, T, 'cancelled')
  wake_caller(thread, T)
end

-- A task of the open step has ended for good and is no longer among those that keep the run going.
local function resolved(thread, T)
  T.left = T.left - 1
  if T.left > 0 then return end
  if T.failed > 0 then return rest(thread, T, 'failed') end
  if T.asked + T.halted > 0 then return rest(thread, T, 'interrupted') end
  local rec = fresh_record('__join__', T.queue, 0)
  T.left = 1
  local token = table.remove(H.tokens or {}, 1)
  if token then lease(thread, T, 'join', rec, token) else push(thread, T, 'join', rec, true) end
end

local function fail(thread, T, task, rec, reason)
  rec.p = 'failed'
  if rec.cl then rec.ct = 1 end
  show_failed(thread, T, task, rec, reason)
  keep(thread, task, rec)
  T.failed = T.failed + 1
  resolved(thread, T)
end

-- The run under way is revoked: no commit of it passes after this. What it called follows.
local function revoke(thread, T, actor)
  fact(thread, T, 'run_cancel_asked', 'actor', actor)
  stop_all(thread, T)
  local left = T.left + T.failed + T.halted
  T.failed, T.halted = 0, 0
  rest(thread, T, 'cancelled', 'actor', actor)
  if T.status == 'cancelled' then T.left = left end
end

-- An attempt's process died (`reaped`: its pool saw it) or its lease ran out. After that the task may be a suspect.
-- Nothing is done, and false the answer, while something that is not ours stands at the end of the log.
local function lost(thread, T, task, rec, reaped)
  local alone = rec.s
  if not try_fact(thread, T, T.run, 'task_lost', 'task', task, 'attempt', rec.a, 'token', rec.t, 'by', rec.o, 'node', rec.n,
    'error', reaped and 'its process died' or 'its lease ran out') then return false end
  unlease(rec)
  show('HINCRBY', S .. 'stats', 'lost', 1)
  rec.l = (rec.l or 0) + 1
  if not reaped then rec.x = (rec.x or 0) + 1 end
  if alone then rec.k = (rec.k or 0) + 1 end
  if (rec.k or 0) >= LOSSES_ALONE_MAX then
    fact(thread, T, 'task_failed', 'task', task, 'attempt', rec.a, 'node', rec.n, 'error', cjson.encode({
      type = 'Poison', text = 'its process died ' .. rec.l .. ' times, ' .. rec.k .. ' of them while it ran alone' }))
    rec.k, rec.s = 0, nil
    show('HINCRBY', S .. 'stats', 'poison', 1)
    fail(thread, T, task, rec, 'poison: its process died ' .. rec.l .. ' times; see `everstep history`, then `everstep retry`')
    return true
  end
  if reaped or (rec.x or 0) >= 2 then rec.s = 1 end
  push(thread, T, task, rec, true)
  return true
end

local function by_token(token)
  local named = call('HGET', S .. 'lease', token)
  if not named then return nil end
  local task, thread = string.match(named, '^(%S+) (.*)$')
  if not thread then return nil end
  local T, rec = opened(thread, task)
  if not rec or rec.t ~= token then return nil end
  return thread, T, task, rec
end

-- Offered tokens that are leased already: this is a resend, and they are the answer.
local function resent()
  for _, token in ipairs(H.tokens or {}) do
    local thread, T, task, rec = by_token(token)
    if thread then out.leases[#out.leases + 1] = row(thread, T, task, rec) end
  end
  return #out.leases > 0
end

local function wake_due(budget)
  local due = call('ZRANGEBYSCORE', S .. 'wakes', '-inf', NOW, 'LIMIT', 0, budget)
  for _, member in ipairs(due) do
    local thread, T, task, rec = at_place(member)
    if thread and rec.p == 'wake' then
      unwake(thread, T, task, rec)
      push(thread, T, task, rec)
    else
      call('ZREM', S .. 'wakes', member)
    end
  end
  return #due
end

-- A job that is not ours, or that says nothing we know: shown as failed, with the reason. Nothing of it is run.
local function refuse(id, q, why)
  show('HSET', R .. 'job:' .. id, 'status', 'failed', 'ended_at', now_iso(), 'exc_info', 'refused by everstep: ' .. why)
  show('ZADD', R .. 'failed:' .. q, math.floor(NOW / 1000) + YEAR_S, id)
  if #out.refused < REFUSED_MAX then out.refused[#out.refused + 1] = id .. ' on queue ' .. q .. ': ' .. why end
end

-- The task that a job names; nil and why if it is none of ours; nothing if there is no such job. RQ packs `data` when it
-- saves a job (`rq requeue`), so we read our own field, which it leaves alone.
local function ours(id)
  local key = R .. 'job:' .. id
  local named = show('HSTRLEN', key, 'everstep')
  if type(named) == 'table' then return nil, 'its key is no hash' end
  if named > NAMED_MAX or (named == 0 and call('HSTRLEN', key, 'data') > NAMED_MAX) then
    return nil, 'its data has over ' .. NAMED_MAX .. ' bytes, which no job of ours has'
  end
  local found = call('HMGET', key, 'everstep', named == 0 and 'data' or 'origin')
  if not found[2] then return end
  local good, d = pcall(cjson.decode, found[1] and '["' .. FUNCTION .. '",null,[],' .. found[1] .. ']' or found[2])
  if not good or type(d) ~= 'table' then return nil, 'its data is not JSON' end
  if d[1] ~= FUNCTION then return nil, 'its function is ' .. string.sub(tostring(d[1]), 1, 80) .. ', not ' .. FUNCTION end
  local a = d[4]
  if type(a) ~= 'table' or type(a.thread) ~= 'string' or type(a.task) ~= 'string' then return nil, 'its arguments name no task' end
  if a.keys and a.keys ~= S then return nil, 'it is of the namespace ' .. string.sub(tostring(a.keys), 1, 80) end
  return a
end

-- A failed task of a rested run whose job was pushed again (`rq requeue`): a continue run begins with it. Nothing is done,
-- and false the answer, if the log refuses the entry.
local function continue_run(thread, T, run)
  local id = try_fact(thread, T, run, 'run_started', 'of', T.rec, 'step', T.step)
  if not id then return false end
  T.run, T.own = run, ''
  T.base = T.step
  call('HSET', S .. 'runs:' .. thread, run, 'running ' .. id .. ' continue')
  T.left, T.failed, T.halted, T.jobs, T.parent = T.left + T.failed + T.halted, 0, 0, 0, ''
  status(thread, T, 'running')
  return true
end

-- A job id from a list: lease its task under the token if it is open and unleased and this is its job.
local function accept(id, q, token)
  local known = fresh[id]
  local thread, task, rec
  if known then
    thread, task, rec = known[1], known[2], known[3]
  else
    local named, why = ours(id)
    if why then return refuse(id, q, why) end
    if not named then return false end
    thread, task = named.thread, named.task
  end
  local T, stored_rec = nil, nil
  if known then T = load(thread) else T, stored_rec = opened(thread, task) end
  local more = T and T.width > 1
  rec = rec or stored_rec
  if not rec or rec.j ~= id then
    call('DEL', R .. 'job:' .. id)
    return false
  end
  if rec.p == 'failed' and T.status ~= 'running' and (T.cleaning or '') == '' and H.spare then
    if not continue_run(thread, T, H.spare) then return false end
    hide_failed(rec)
    rec.p, rec.r = 'moving', nil
    keep(thread, task, rec)
    call('RPUSH', S .. 'unmade:' .. thread, cjson.encode({ reopen = '0' }))
    H.spare, more = nil, true
  elseif T.status ~= 'running' then
    if rec.p == 'job' then -- of a cancelled run whose tasks are still being withdrawn
      unqueue(T, rec)
      forget_job(rec)
      rec.p = 'stopped'
      keep(thread, task, rec)
    end
    return false
  elseif rec.p == 'lease' or rec.p == 'done' then
    return false
  else
    leave(thread, T, task, rec)
    if rec.p == 'failed' then T.failed, T.left = T.failed - 1, T.left + 1 end -- its run still runs: it keeps it going again
  end
  lease(thread, T, task, rec, token)
  moved = moved + 1
  if more then make_jobs(thread, T) end
  return true
end

-- The same; where it fails over keys that we did not write, the others in the list are still to be had.
local function accepted(id, q, token)
  local before = #out.leases
  local good, took = pcall(accept, id, q, token)
  if good then return took end
  if #out.leases > before then return true end
  refuse(id, q, 'its task can not be read; see `everstep doctor`')
  return false
end

-- Nothing waits in the queue: a task that would now be its first is leased without having been there.
local function take_coming(q, tokens)
  for i, c in ipairs(coming) do
    if c and #tokens > 0 and queue_of(c[4]) == q then
      if q ~= c[2].queue then show('SADD', R .. 'queues', R .. 'queue:' .. q) end
      lease(c[1], c[2], c[3], c[4], table.remove(tokens, 1))
      moved = moved + 1
      coming[i] = false
    end
  end
end

-- Fill the offered tokens from the front of the worker's queues, in their order.
local function refill()
  local tokens, looked = H.tokens or {}, 0
  for _, q in ipairs(H.queues or {}) do
    local id = true
    while id and #tokens > 0 and looked < MOVE_MAX do
      id = call('LPOP', R .. 'queue:' .. q)
      looked = looked + 1
      if looked == MOVE_MAX then pushed[q] = (pushed[q] or 0) + 2 end -- not at the end yet: ring, so that somebody goes on
      if id then
        pushed[q] = (pushed[q] or 0) - 1 -- what is left behind rings, not what is merely exchanged
        if accepted(id, q, tokens[1]) then table.remove(tokens, 1) end
      end
    end
    if not id then take_coming(q, tokens) end
  end
end

-- A process with free slots left says so; scripts that leave work behind ring as many bells as they leave jobs.
local function wait_for_work()
  if H.proc and H.tokens and #H.tokens > 0 then
    for _, q in ipairs(H.queues) do show('ZADD', S .. 'waiting:' .. q, 'NX', NOW, H.proc) end
  end
end

local function ring(q, count)
  for _ = 1, count do
    local first = show('ZPOPMIN', S .. 'waiting:' .. q)
    if first.err or #first == 0 then return end
    show('RPUSH', S .. 'bell:' .. first[1], q)
    show('PEXPIRE', S .. 'bell:' .. first[1], 5000)
  end
end

local function finish()
  push_coming()
  save()
  write_counts()
  for q, count in pairs(pushed) do
    if count > 0 then ring(q, count) end
  end
  if #out.leases == 0 then out.leases = nil end
  if #out.refused == 0 then out.refused = nil end
  return cjson.encode(out)
end

