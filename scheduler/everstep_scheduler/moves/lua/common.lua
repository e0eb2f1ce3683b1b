-- What all scripts share: records, jobs, leases, places. `opening`, `resting` and `taking` go on with it, and then comes the
-- script; the whole is one, its version is its hash.
-- KEYS[1]  the stem of our keys, `everstep:{0}:`. H  what `header` or `plain` found in ARGV; `rq` in it is RQ's prefix.
-- Places of an open task:  unmade (in the list, no record) | job | lease | wake | line | parked | child | asked | failed | stopped | done
-- A record: p place, a attempt, l lost, x expiries, k losses while alone, s suspect, t token, o owner, L lease ms,
--           u unserved node it is parked for, if not its own,
--           j job id, q queue, n node, w timeout s, r reason, i questions asked, an answers so far (entry ids, spaces),
--           cl what it called (`<run> <thread>`), ct 1 once it has told how that rested, u length of the thread's `over` when it asked,
--           e its first effect (entry id),
--           g the gate that it stands at (place line), or a slot of which it has (job, lease); z when it came there first (see limits.lua)
--           f 1: its run has a fairness key (see turns.lua)
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
local YEAR_S, HOUR_S, DAY_MS, TRY_AGAIN_MS = 31536000, 3600, 86400000, 1000
local threads, stored, fresh, pushed, moved = {}, {}, {}, {}, 0
local coming, counted = {}, {}
local out = { leases = {}, refused = {} }
local gates = {} -- of tasks with a limit: limits.lua

local today
local function now_iso()
  today = today or iso(NOW)
  return today
end

-- Both sentinels stand, else our or RQ's keys were lost; second answer: is RQ suspended?
local function alive()
  local found = call('MGET', S .. 'alive', R .. 'everstep:alive', R .. 'suspended', S .. 'limited')
  gates.graphs = found[4]
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

-- Only what changed is written: the rest would be most of what the append-only file gets. Of a new thread what `plain` reads
-- comes first: Redis walks a small hash from its front for each field.
local function save()
  for thread, T in pairs(threads) do
    local flat, was = {}, stored[thread]
    if not was then
      was = {}
      for _, name in ipairs({ 'n', 'digest', 'status', 'left', 'width', 'run', 'graph', 'early', 'own', 'jid', 'queue', 'base', 'rec',
        'birth', 'conf' }) do
        if T[name] then was[name], flat[#flat + 1], flat[#flat + 2] = T[name], name, T[name] end
      end
    end
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

-- Is it text? One byte that is none, and whoever asked can't read the answer, with all else that is in it.
local SEQUENCES = { '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\239][\128-\191][\128-\191]',
  '\240[\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]' }
local function is_text(bytes)
  if not string.find(bytes, '[\128-\255]') then return true end
  for _, sequence in ipairs(SEQUENCES) do bytes = string.gsub(bytes, sequence, ' ') end
  return not string.find(bytes, '[\128-\255]')
end

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
-- thread must not keep all others from their work. `everstep recover` makes its indexes anew. Third answer: why, where that
-- is to be shown.
local function opened(thread, task)
  local good, T = pcall(load, thread)
  if not (good and T and whole(T)) then return end
  local text = show('HGET', S .. 'open:' .. thread, task)
  local rec = type(text) == 'string' and sound(text)
  if not rec then return end
  if not is_text(table.concat({ thread, task, text, T.digest, T.birth, T.graph, T.run, T.rec, T.conf or '', T.over or '', T.early or '' })) then
    return nil, nil, 'there are bytes that are no text in the hash of its thread, or in its record; see `everstep doctor`'
  end
  return T, rec
end

local function keep(thread, task, rec)
  call('HSET', S .. 'open:' .. thread, task, cjson.encode(rec))
end

-- The thread and the task of an attempt, and the fence: does it hold the task still, at the checkpoint that it began from?
local function attempt()
  local T = load(H.thread)
  local rec = T and record(H.thread, H.task)
  return T, rec, rec and rec.p == 'lease' and rec.t == H.token and T.status == 'running' and T.n == H.n and T.digest == H.digest
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
  rec.f = (T.fk or '') ~= '' and 1 or nil
  local date = now_iso()
  local named = cjson.encode({ thread = thread, n = T.n, task = task, keys = S })
  local begun = started and { 'worker_name', H.owner, 'started_at', date } or {}
  call('HSET', R .. 'job:' .. id,
    'everstep', named, 'data', '["' .. FUNCTION .. '",null,[],' .. named .. ']',
    'origin', q, 'status', started and 'started' or 'queued', 'timeout', rec.w > 0 and math.ceil(rec.w) or -1, 'created_at', date, 'enqueued_at', date,
    'description', T.graph .. '/' .. thread .. '#' .. T.n .. ' ' .. rec.n, 'result_ttl', 0, unpack(begun))
  return id, q
end

-- A task as `wakes` and `parked:*` name it. Tasks of later steps have the same names, so n belongs to it.
local function place_of(thread, T, task) return T.n .. ' ' .. task .. ' ' .. thread end

-- A task whose queue takes nothing, for its key is of another type: it waits as a wake, and is pushed when that is mended.
-- A task that was given up by its holder and can't be queued would be in no place, and nobody would ever look for it.
local function try_later(thread, T, task, rec)
  if rec.g then gates.let_go(rec) end
  rec.p = 'wake'
  moved = moved + 1
  keep(thread, task, rec)
  call('ZADD', S .. 'wakes', NOW + TRY_AGAIN_MS, place_of(thread, T, task))
  show('HSET', R .. 'job:' .. rec.j, 'status', 'scheduled')
  show('ZADD', R .. 'scheduled:' .. queue_of(rec), math.floor((NOW + TRY_AGAIN_MS) / 1000), rec.j)
end

local function push(thread, T, task, rec, front)
  rec.p, rec.t, rec.o, rec.r = 'job', nil, nil, nil
  local id, q = make_job(thread, T, task, rec)
  if rec.f and gates.turn(thread, T, task, rec, front) then return end
  local length = show(front and 'LPUSH' or 'RPUSH', R .. 'queue:' .. q, id)
  if type(length) == 'table' then return try_later(thread, T, task, rec) end
  if length == 1 then show('SADD', R .. 'queues', R .. 'queue:' .. q) end
  count(q, 1)
  T.jobs = T.jobs + 1
  moved = moved + 1
  pushed[q] = (pushed[q] or 0) + 1
  fresh[id] = { thread, task, rec }
  keep(thread, task, rec)
end

local function unqueue(T, rec)
  if rec.g then gates.pass_on(rec) end
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
  if rec.g then gates.begins(T, rec) end
  keep(thread, task, rec)
  call('ZADD', S .. 'leases', NOW + rec.L, token)
  call('HSET', S .. 'lease', token, task .. ' ' .. thread)
  call('HSET', S .. 'held:' .. H.owner, token, NOW) -- when it was made, or named last
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
  if rec.g then gates.let_go(rec) end
end

local function forget_job(rec)
  if rec.g then gates.let_go(rec) end
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
  elseif rec.p == 'line' then gates.unline(thread, T, task, rec)
  elseif rec.p == 'failed' then hide_failed(rec)
  elseif rec.p == 'job' then
    local key = R .. 'queue:' .. queue_of(rec)
    unqueue(T, rec)
    -- in a long list the id stays: without its task it is dropped when it comes up, and the audit takes it out before
    local length = listed and show('LLEN', key)
    if type(length) == 'number' and length <= LREM_MAX then call('LREM', key, 1, rec.j) end
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
