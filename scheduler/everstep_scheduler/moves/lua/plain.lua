-- plain: nearly every commit, without what only the others need: a task that was alone in its step, one checkpoint, one
-- task next, for a worker. It stands here a second time for speed; docs/decisions says what that is worth.
-- It reads all it needs first. Where anything is out of the ordinary it has written nothing, and `commit` behind it decides.
-- `jobs` of the thread, which paces wide steps, is left as it is.
-- ARGV: 'plain', the values below, the tokens, the queues, the arguments of the entry. Or a JSON header, as for any script.
local AT, H = 2, nil
if ARGV[1] ~= 'plain' then
  H = cjson.decode(ARGV[1])
else
  local rq, thread, n, digest, task, token, owner, salt, lease_ms, proc, run, spare, head_n, head_digest, head_step,
    next_task, next_node, next_queue, timeout, named, place, tokens, queues, size = unpack(ARGV, 2, 25)
  local Q = 25 + tokens
  AT = Q + queues + 1
  local S, R, call, show = KEYS[1], rq .. ':', redis.call, redis.pcall
  local FIELDS = { 'n', 'digest', 'status', 'left', 'width', 'run', 'graph', 'jid', 'birth', 'rec', 'base', 'conf', 'own',
    'early', 'over', 'queue' }
  local clock = call('TIME')
  local ms = string.format('%d%03d', clock[1], math.floor(clock[2] / 1000))
  local T, rec, free, looked, taken, seen = nil, nil, 0 + tokens, {}, {}, { [thread] = true }

  -- A graph some nodes of which have a limit, a task that has a slot, or whose run has a fairness key: that is not for here.
  local limited
  local function gated(graph, its) return its.g or its.f or limited and string.find(limited, '\n' .. graph .. '\n', 1, true) end

  -- A job at the front of a queue: its lease, if it is one task alone in its step, and nothing is unusual about it.
  local function take(id, q)
    local size_of = call('HSTRLEN', R .. 'job:' .. id, 'everstep')
    local named = size_of > 0 and size_of < 8192 and cjson.decode(call('HGET', R .. 'job:' .. id, 'everstep'))
    local other = named and named.keys == S and not seen[named.thread] and named.thread
    if not other then return end
    local O = call('HMGET', S .. 'thread:' .. other, unpack(FIELDS))
    local its = cjson.decode(call('HGET', S .. 'open:' .. other, named.task))
    for i = 1, 11 do
      if not O[i] then return end
    end
    local plainly = O[3] == 'running' and O[4] == '1' and O[5] == '1' and (O[14] or '') == '' and O[16]
      and its.p == 'job' and its.j == id and its.q == q and not its.s and type(its.n) == 'string' and not gated(O[7], its)
    if not plainly then return end
    seen[other] = true
    local mine = ARGV[Q - free + 1]
    its.p, its.a, its.t, its.o, its.L = 'lease', its.a + 1, mine, owner, 0 + lease_ms
    return { thread = other, task = named.task, token = mine, job = id, queue = q, record = cjson.encode(its),
      row = { mine, other, 0 + O[1], O[2], named.task, its.n, its.a, its.l or 0, q, its.w, O[6], O[7], 1, id, O[9], O[10], 0 + O[11],
        0 + ms, 0, O[12] or O[10], its.an or '', its.c or '', its.cl or '', its.ct or 0, O[15] or '', its.e or '' } }
  end

  -- All that is to be written; nothing if this is none of the ordinary.
  local function prepared()
    local stands = call('MGET', S .. 'alive', R .. 'everstep:alive', R .. 'suspended', S .. 'limited')
    if not (stands[1] and stands[2]) or stands[3] then return end
    limited = stands[4]
    T = call('HMGET', S .. 'thread:' .. thread, unpack(FIELDS))
    rec = cjson.decode(call('HGET', S .. 'open:' .. thread, task))
    local mine = T[1] == n and T[2] == digest and T[3] == 'running' and T[4] == '1' and T[5] == '1' and T[6] == run
      and (T[13] or '') == '' and (T[14] or '') == '' and not T[15] and not gated(T[7], rec)
      and rec.p == 'lease' and rec.t == token and rec.j and not rec.s
    if not mine then return end
    local own, i = { thread = thread, task = next_task, queue = next_queue }, 1
    own.job = T[8] .. '-' .. head_n .. '-' .. next_task .. '-1-' .. salt
    while i <= 0 + queues and free > 0 do
      local q = ARGV[Q + i]
      local ids = call('LRANGE', R .. 'queue:' .. q, 0, free - 1)
      looked[q] = #ids
      for _, id in ipairs(ids) do
        local lease = take(id, q)
        if not lease then return end
        taken[#taken + 1] = lease
        free = free - 1
      end
      if free > 0 and q == next_queue then -- nothing waits ahead of it
        own.token, own.place = ARGV[Q - free + 1], #taken + 1
        free = free - 1
      end
      i = i + 1
    end
    -- what must ring a bell is not for here: a next task in a queue from which nothing was taken
    local from = looked[next_queue]
    if not own.token and (from or 0) == 0 then return end
    if own.token then
      own.record = '{"p":"lease","a":1,' .. place .. ',"o":' .. cjson.encode(owner) .. ',"t":"' .. own.token .. '","L":' .. lease_ms
        .. ',"j":"' .. own.job .. '"}'
    else
      own.record = '{"p":"job","a":0,' .. place .. ',"j":"' .. own.job .. '"}'
    end
    local rows = {}
    for k, it in ipairs(taken) do rows[k] = it.row end
    return own, { ms, own.token and own.job or '', own.place or 0, #rows > 0 and cjson.encode(rows) or '' }
  end

  local good, own, answer = pcall(prepared)
  if good and own then
    local date, till = iso(0 + ms), string.format('%d', ms + lease_ms)
    local wip_till = string.format('%d', math.floor(till / 1000) + 3600)
    local function lease(it)
      call('HSET', S .. 'open:' .. it.thread, it.task, it.record)
      call('ZADD', S .. 'leases', till, it.token)
      call('HSET', S .. 'lease', it.token, it.task .. ' ' .. it.thread)
      call('HSET', S .. 'held:' .. owner, it.token, ms)
      show('ZADD', R .. 'wip:' .. it.queue, wip_till, it.job .. ':' .. it.token)
    end
    call('XADD', S .. 'log:' .. thread, head_n .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms, unpack(ARGV, AT, AT + size - 1))
    call('ZREM', S .. 'leases', token)
    call('HDEL', S .. 'lease', token)
    call('HDEL', S .. 'held:' .. rec.o, token)
    show('ZREM', R .. 'wip:' .. rec.q, rec.j .. ':' .. token)
    call('DEL', R .. 'job:' .. rec.j)
    if next_task ~= task then call('UNLINK', S .. 'open:' .. thread) end -- else its record takes this one's place
    for _, it in ipairs(taken) do
      lease(it)
      call('HSET', R .. 'job:' .. it.job, 'status', 'started', 'worker_name', owner, 'started_at', date)
    end
    for q, count in pairs(looked) do
      if count > 0 then call('LPOP', R .. 'queue:' .. q, count) end
      local by = (q == next_queue and not own.token and 1 or 0) - count
      if by ~= 0 then show('HINCRBY', S .. 'counts', q, by) end
    end
    call('HSET', R .. 'job:' .. own.job,
      'everstep', named, 'data', '["everstep.run_node",null,[],' .. named .. ']',
      'origin', next_queue, 'status', own.token and 'started' or 'queued', 'timeout', 0 + timeout > 0 and math.ceil(timeout) or '-1',
      'created_at', date, 'enqueued_at', date, 'description', T[7] .. '/' .. thread .. '#' .. head_n .. ' ' .. next_node, 'result_ttl', '0',
      unpack(own.token and { 'worker_name', owner, 'started_at', date } or {}))
    if own.token then lease(own) else call('HSET', S .. 'open:' .. thread, next_task, own.record) end
    local first = own.token and next_queue ~= T[16] or not own.token and call('RPUSH', R .. 'queue:' .. next_queue, own.job) == 1
    if first then show('SADD', R .. 'queues', R .. 'queue:' .. next_queue) end
    call('HSET', S .. 'thread:' .. thread, 'n', head_n, 'digest', head_digest, 'step', head_step, 'updated', ms)
    if free > 0 and proc ~= '' then
      for i = 1, queues do show('ZADD', S .. 'waiting:' .. ARGV[Q + i], 'NX', ms, proc) end
    end
    return answer
  end

  H = { rq = rq, thread = thread, n = 0 + n, digest = digest, task = task, token = token, owner = owner, salt = salt, lease_ms = 0 + lease_ms,
    proc = proc ~= '' and proc or nil, run = run, spare = spare, outcome = 'next', stop = '',
    head = { 0 + head_n, head_digest, 0 + head_step }, next = { { next_task, next_node, next_queue, 0 + timeout } },
    entries = { { head_n .. '-0', 'checkpoint', 0 + size } }, tokens = { unpack(ARGV, 26, Q) }, queues = { unpack(ARGV, Q + 1, AT - 1) } }
end
