-- plain: nearly every commit, without what only the others need: a task that was alone in its step, one checkpoint (behind
-- START two), one task next or none, for a worker. It stands here a second time for speed; docs/decisions says what that is
-- worth. It reads all it needs first. Where anything is out of the ordinary it has written nothing, and `commit` behind it
-- decides. `jobs` of a thread that goes on, which paces wide steps, is left as it is.
-- ARGV: 'plain', the values below, the tokens, the queues, the arguments of the entries. Or a JSON header, as for any script.
local AT, H = 2, nil
if ARGV[1] ~= 'plain' then
  H = cjson.decode(ARGV[1])
else
  -- All that is to be written; nothing if this is none of the ordinary. It is given all that it needs: for each variable that
  -- a function finds around it, Lua looks through all that any function has found there.
  local function prepared(S, R, call, ms, _, thread, n, digest, task, token, owner, salt, lease_ms, _, run, _, head_n, _, _,
    next_task, _, next_queue, _, _, place, tokens, queues)
    local stands = call('MGET', S .. 'alive', R .. 'everstep:alive', R .. 'suspended', S .. 'limited')
    if not (stands[1] and stands[2]) or stands[3] then return end
    local limited = stands[4] -- graphs some nodes of which have a limit
    local T = call('HMGET', S .. 'thread:' .. thread, 'n', 'digest', 'status', 'left', 'width', 'run', 'own', 'early', 'over', 'graph',
      'jid', 'queue', 'parent')
    local rec = cjson.decode(call('HGET', S .. 'open:' .. thread, task))
    local mine = T[1] == n and T[2] == digest and T[3] == 'running' and T[4] == '1' and T[5] == '1' and T[6] == run
      and (T[7] or '') == '' and (T[8] or '') == '' and not T[9]
      and rec.p == 'lease' and rec.t == token and rec.j and not rec.s and not rec.g and not rec.f
      and not (limited and string.find(limited, '\n' .. T[10] .. '\n', 1, true))
    if not mine then return end
    local own
    if next_task ~= '' then
      own = { thread = thread, task = next_task, queue = next_queue, job = T[11] .. '-' .. head_n .. '-' .. next_task .. '-1-' .. salt }
    elseif (T[13] or '') ~= '' or call('EXISTS', S .. 'queued:' .. thread) == 1 then
      return
    end
    local Q, free, leases, rows, looked, seen = 26 + tokens, 0 + tokens, {}, {}, {}, { [thread] = true }
    for i = 1, queues do
      if free == 0 then break end
      local q = ARGV[Q + i]
      local ids = call('LRANGE', R .. 'queue:' .. q, 0, free - 1)
      looked[q] = #ids
      for _, id in ipairs(ids) do
        -- a job at the front of a queue: one task alone in its step, and nothing is unusual about it
        local size_of = call('HSTRLEN', R .. 'job:' .. id, 'everstep')
        local named = size_of > 0 and size_of < 8192 and cjson.decode(call('HGET', R .. 'job:' .. id, 'everstep'))
        local other = named and named.keys == S and not seen[named.thread] and named.thread
        if not other then return end
        local O = call('HMGET', S .. 'thread:' .. other, 'n', 'digest', 'status', 'left', 'width', 'run', 'graph', 'jid', 'birth', 'rec',
          'base', 'queue', 'conf', 'early', 'over')
        local its = cjson.decode(call('HGET', S .. 'open:' .. other, named.task))
        for k = 1, 12 do
          if not O[k] then return end
        end
        local plainly = O[3] == 'running' and O[4] == '1' and O[5] == '1' and (O[14] or '') == ''
          and its.p == 'job' and its.j == id and its.q == q and not its.s and type(its.n) == 'string' and not its.g and not its.f
          and not (limited and string.find(limited, '\n' .. O[7] .. '\n', 1, true))
        if not plainly then return end
        seen[other] = true
        local its_token = ARGV[Q - free + 1]
        its.p, its.a, its.t, its.o, its.L = 'lease', its.a + 1, its_token, owner, 0 + lease_ms
        leases[#leases + 1] = { thread = other, task = named.task, token = its_token, job = id, queue = q, record = cjson.encode(its) }
        rows[#rows + 1] = { its_token, other, 0 + O[1], O[2], named.task, its.n, its.a, its.l or 0, q, its.w, O[6], O[7], 1, id, O[9],
          O[10], 0 + O[11], 0 + ms, 0, O[13] or O[10], its.an or '', its.c or '', its.cl or '', its.ct or 0, O[15] or '', its.e or '' }
        free = free - 1
      end
      if free > 0 and q == next_queue then -- nothing waits ahead of it
        own.token, own.place = ARGV[Q - free + 1], #rows + 1
        leases[#leases + 1] = own
        free = free - 1
      end
    end
    if own and own.token then
      own.record = '{"p":"lease","a":1,' .. place .. ',"o":' .. cjson.encode(owner) .. ',"t":"' .. own.token .. '","L":' .. lease_ms
        .. ',"j":"' .. own.job .. '"}'
    elseif own then
      -- what must ring a bell is not for here: a next task in a queue from which nothing was taken
      if (looked[next_queue] or 0) == 0 then return end
      own.record = '{"p":"job","a":0,' .. place .. ',"j":"' .. own.job .. '"}'
    end
    local held = own and own.token
    return T, rec, own, leases, looked, free,
      { ms, held and own.job or '', held and own.place or 0, #rows > 0 and cjson.encode(rows) or '' }
  end

  local rq, thread, n, digest, task, token, owner, salt, lease_ms, proc, run, spare, head_n, head_digest, head_step,
    next_task, next_node, next_queue, timeout, named, place, tokens, queues, before, size = unpack(ARGV, 2, 26)
  local S, R, call, show = KEYS[1], rq .. ':', redis.call, redis.pcall
  local clock = call('TIME')
  local ms = string.format('%d%03d', clock[1], math.floor(clock[2] / 1000))
  local Q = 26 + tokens
  AT = Q + queues + 1
  local good, T, rec, own, leases, looked, free, answer = pcall(prepared, S, R, call, ms, unpack(ARGV, 2, 24))
  if good and T then
    local date, till = iso(0 + ms), string.format('%d', ms + lease_ms)
    local wip_till = string.format('%d', math.floor(till / 1000) + 3600)
    local at = AT + before
    if at > AT then
      call('XADD', S .. 'log:' .. thread, head_n - 1 .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms, unpack(ARGV, AT, at - 1))
    end
    call('XADD', S .. 'log:' .. thread, head_n .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms, unpack(ARGV, at, at + size - 1))
    call('ZREM', S .. 'leases', token)
    call('HDEL', S .. 'lease', token)
    call('HDEL', S .. 'held:' .. rec.o, token)
    show('ZREM', R .. 'wip:' .. rec.q, rec.j .. ':' .. token)
    call('DEL', R .. 'job:' .. rec.j)
    if next_task ~= task then call('UNLINK', S .. 'open:' .. thread) end -- else its record takes this one's place
    for q, count in pairs(looked) do
      if count > 0 then call('LPOP', R .. 'queue:' .. q, count) end
      local by = (own and q == next_queue and not own.token and 1 or 0) - count
      if by ~= 0 then show('HINCRBY', S .. 'counts', q, by) end
    end
    if own then
      call('HSET', R .. 'job:' .. own.job,
        'everstep', named, 'data', '["everstep.run_node",null,[],' .. named .. ']',
        'origin', next_queue, 'status', own.token and 'started' or 'queued', 'timeout', 0 + timeout > 0 and math.ceil(timeout) or '-1',
        'created_at', date, 'enqueued_at', date, 'description', T[10] .. '/' .. thread .. '#' .. head_n .. ' ' .. next_node,
        'result_ttl', '0', unpack(own.token and { 'worker_name', owner, 'started_at', date } or {}))
      if not own.token then call('HSET', S .. 'open:' .. thread, next_task, own.record) end
      local first = own.token and next_queue ~= T[12] or not own.token and call('RPUSH', R .. 'queue:' .. next_queue, own.job) == 1
      if first then show('SADD', R .. 'queues', R .. 'queue:' .. next_queue) end
    end
    for _, it in ipairs(leases) do
      if it ~= own then call('HSET', R .. 'job:' .. it.job, 'status', 'started', 'worker_name', owner, 'started_at', date) end
      call('HSET', S .. 'open:' .. it.thread, it.task, it.record)
      call('ZADD', S .. 'leases', till, it.token)
      call('HSET', S .. 'lease', it.token, it.task .. ' ' .. it.thread)
      call('HSET', S .. 'held:' .. owner, it.token, ms)
      show('ZADD', R .. 'wip:' .. it.queue, wip_till, it.job .. ':' .. it.token)
    end
    if own then
      call('HSET', S .. 'thread:' .. thread, 'n', head_n, 'digest', head_digest, 'step', head_step, 'updated', ms)
    else
      call('HSET', S .. 'thread:' .. thread, 'n', head_n, 'digest', head_digest, 'step', head_step, 'updated', ms, 'status', 'done',
        'width', '0', 'left', '0', 'jobs', '0')
      local word = show('HGET', S .. 'runs:' .. thread, run)
      if type(word) == 'string' then call('HSET', S .. 'runs:' .. thread, run, (string.gsub(word, '^%S+', 'done', 1))) end
      show('ZREM', S .. 'threads:running', thread)
      show('ZADD', S .. 'threads:done', ms, thread)
    end
    if free > 0 and proc ~= '' then
      for i = 1, queues do show('ZADD', S .. 'waiting:' .. ARGV[Q + i], 'NX', ms, proc) end
    end
    return answer
  end

  H = { rq = rq, thread = thread, n = 0 + n, digest = digest, task = task, token = token, owner = owner, salt = salt, lease_ms = 0 + lease_ms,
    proc = proc ~= '' and proc or nil, run = run, spare = spare, outcome = 'next', stop = '',
    head = { 0 + head_n, head_digest, 0 + head_step },
    next = next_task ~= '' and { { next_task, next_node, next_queue, 0 + timeout } } or {},
    entries = { { head_n .. '-0', 'checkpoint', 0 + size } }, tokens = { unpack(ARGV, 27, Q) }, queues = { unpack(ARGV, Q + 1, AT - 1) } }
  if 0 + before > 0 then table.insert(H.entries, 1, { head_n - 1 .. '-0', 'checkpoint', 0 + before }) end
end
