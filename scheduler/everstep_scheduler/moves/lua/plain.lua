-- plain: nearly every commit, without what only the others need: a task that was alone in its step, one checkpoint (behind
-- START two), one task next or none, for a worker. It stands here a second time for speed; docs/decisions says what that is
-- worth. Several that ended together come in one call, and what all of them do to an index is one command.
-- It reads all it needs first. Where anything about a commit is out of the ordinary it has written nothing of it: if it came
-- alone, `commit` behind this decides, else it is answered with -1, and the caller sends it alone. `jobs` of a thread that
-- goes on, which paces wide steps, is left as it is. `usual` and `USUAL` stand in `lone`.
-- ARGV: 'plain', the 9 values below, the tokens, the queues; then for each commit its 17 values and the arguments of its
-- entries, names and values in turn, or, with a size of 0, the 9 values below of a usual checkpoint. Or a JSON header, as for
-- any script.
local AT, H, NONE = 2, nil, {}
if ARGV[1] ~= 'plain' then
  H = cjson.decode(ARGV[1])
else
  -- All that is to be written; nothing if this is none of the ordinary. It is given all that it needs: for each variable that
  -- a function finds around it, Lua looks through all that any function has found there.
  local function prepared(S, R, call, ms, owner, salt, lease_ms, commits, tokens, queues)
    local stands = call('MGET', S .. 'alive', R .. 'everstep:alive', R .. 'suspended', S .. 'limited')
    if not (stands[1] and stands[2]) or stands[3] then return end
    local limited = stands[4] -- graphs some nodes of which have a limit
    local match, me = string.match, cjson.encode(owner)
    local all, good, seen, at, Q = {}, {}, {}, 11 + tokens + queues, 10 + tokens
    for i = 1, commits do
      local thread, n, digest, task, token, run, head_n, head_digest, head_step, next_task, next_node, next_queue, timeout, named, place,
        before, size = unpack(ARGV, at, at + 16)
      local key, open = S .. 'thread:' .. thread, S .. 'open:' .. thread
      local it = { thread = thread, key = key, open = open, token = token, run = run, n = head_n, digest = head_digest, step = head_step,
        at = at + 17, before = 0 + before, size = 0 + size, was = task, task = next_task, queue = next_queue, named = named, place = place,
        timeout = timeout, gone = next_task ~= task, -- else its record takes this one's place
        q = false, j = false, job = false, says = false, home = false, leased = false, record = false, done = false }
      all[i], at = it, at + 17 + before + (it.size > 0 and it.size or USUAL)
      local T = call('HMGET', key, 'n', 'digest', 'status', 'left', 'width', 'run', 'own', 'early', 'over', 'graph',
        'jid', 'queue', 'parent')
      local text = call('HGET', open, task) or '{}'
      -- as it is written below; or, from elsewhere, in any order
      local q, o, t, j = match(text,
        '^{"p":"lease","a":%d+,"n":"[^"]*","q":"([^"\\]*)","w":[%d.]+,"o":("[^"]*"),"t":"([^"]*)","L":%d+,"j":"([^"]*)"}$')
      if not q then
        local rec = cjson.decode(text)
        if rec.p == 'lease' and not rec.s and not rec.g and not rec.f then q, o, t, j = rec.q, cjson.encode(rec.o), rec.t, rec.j end
      end
      local mine = j and t == token and o == me
        and T[1] == n and T[2] == digest and T[3] == 'running' and T[4] == '1' and T[5] == '1' and T[6] == run
        and (T[7] or '') == '' and (T[8] or '') == '' and not T[9]
        and not (limited and string.find(limited, '\n' .. T[10] .. '\n', 1, true))
        and (next_task ~= '' or (T[13] or '') == '' and call('EXISTS', S .. 'queued:' .. thread) == 0)
      if mine then
        it.q, it.j, seen[thread], good[#good + 1] = q, j, true, it
        if next_task ~= '' then
          it.job = T[11] .. '-' .. head_n .. '-' .. next_task .. '-1-' .. salt
          it.says, it.home = T[10] .. '/' .. thread .. '#' .. head_n .. ' ' .. next_node, T[12]
        end
      end
    end
    if #good == 0 then return end
    local free, leases, rows, looked = tokens, {}, {}, {}
    for i = 1, queues do
      if free == 0 then break end
      local q = ARGV[Q + i]
      local here = '","q":' .. string.gsub(cjson.encode(q), '\\/', '/') .. ',"w":' -- as `_place` writes it
      local ids = call('LRANGE', R .. 'queue:' .. q, 0, free - 1)
      looked[q] = #ids
      for _, id in ipairs(ids) do
        -- a job at the front of a queue: one task alone in its step, and nothing is unusual about it
        local job = R .. 'job:' .. id
        local named = call('HGET', job, 'everstep')
        if not named or #named >= 8192 then return end
        local keys, its_task, other = match(named, '^{"keys":"([^"]*)","n":%d+,"task":"([^"\\]*)","thread":"([^"\\]*)"}$')
        if not keys then
          local said = cjson.decode(named)
          keys, its_task, other = said.keys, said.task, said.thread
        end
        if keys ~= S or seen[other] then return end
        local open = S .. 'open:' .. other
        local O = call('HMGET', S .. 'thread:' .. other, 'conf', 'over', 'n', 'digest', 'run', 'graph', 'birth', 'rec', 'base', 'jid',
          'queue', 'status', 'left', 'width', 'early')
        local text = call('HGET', open, its_task)
        for k = 3, 14 do
          if not O[k] then return end
        end
        if O[12] ~= 'running' or O[13] ~= '1' or O[14] ~= '1' or (O[15] or '') ~= ''
          or limited and string.find(limited, '\n' .. O[6] .. '\n', 1, true) then return end
        local its_token, record = ARGV[Q - free + 1], nil
        local a, where, j = match(text, '^{"p":"job","a":(%d+),("n":"[^"]*","q":"[^"]*","w":[%d.]+),"j":"([^"]*)"}$')
        if a then
          if j ~= id or not string.find(where, here, 1, true) then return end
          record = '{"p":"lease","a":' .. a + 1 .. ',' .. where .. ',"o":' .. me .. ',"t":"' .. its_token .. '","L":' .. lease_ms
            .. ',"j":"' .. id .. '"}'
        else
          local its = cjson.decode(text)
          if its.p ~= 'job' or its.j ~= id or its.q ~= q or its.s or type(its.n) ~= 'string' or its.g or its.f then return end
          its.p, its.a, its.t, its.o, its.L = 'lease', its.a + 1, its_token, owner, lease_ms
          record = cjson.encode(its)
          where = record
        end
        seen[other] = true
        leases[#leases + 1] = { thread = other, open = open, task = its_task, token = its_token, job = id, queue = q, record = record,
          waited = job }
        rows[#rows + 1] = { #leases, a and a + 1 or 0, where, other, its_task, q, id, unpack(O, 1, 9) }
        free = free - 1
      end
      for _, it in ipairs(good) do
        if free == 0 then break end
        if it.job and it.queue == q and not it.leased then -- nothing waits ahead of it
          leases[#leases + 1] = { thread = it.thread, open = it.open, task = it.task, token = ARGV[Q - free + 1], job = it.job, queue = q }
          it.leased, free = #leases, free - 1
        end
      end
    end
    for _, it in ipairs(good) do
      if it.leased then
        leases[it.leased].record = '{"p":"lease","a":1,' .. it.place .. ',"o":' .. me .. ',"t":"' .. leases[it.leased].token
          .. '","L":' .. lease_ms .. ',"j":"' .. it.job .. '"}'
      elseif it.job then
        it.record = '{"p":"job","a":0,' .. it.place .. ',"j":"' .. it.job .. '"}'
        if not looked[it.queue] then
          call('LLEN', R .. 'queue:' .. it.queue) -- what can't be queued is not written
          looked[it.queue] = 0
        end
      end
    end
    return good, all, leases, looked, free, { ms .. ' ' .. all[1].token, rows }
  end

  local rq, owner, salt, lease_ms, proc, spare, commits, tokens, queues = unpack(ARGV, 2, 10)
  local S, R, call, show = KEYS[1], rq .. ':', redis.call, redis.pcall
  local clock = call('TIME')
  local ms = string.format('%d%03d', clock[1], math.floor(clock[2] / 1000))
  AT = 11 + tokens + queues
  local good, ready, all, leases, looked, free, answer = pcall(prepared, S, R, call, ms, owner, salt, 0 + lease_ms, 0 + commits, 0 + tokens,
    0 + queues)
  if good and ready then
    local date, till = iso(0 + ms), string.format('%d', ms + lease_ms)
    local wip_till = string.format('%d', math.floor(till / 1000) + 3600)
    local ended, jobs, steps, wip, pushed, by = {}, {}, {}, {}, {}, {}
    local done, refused, begins = {}, nil, { 'worker_name', owner, 'started_at', date }
    for _, it in ipairs(ready) do
      local at, log, id = it.at, S .. 'log:' .. it.thread, ''
      if it.before > 0 then
        id = show('XADD', log, it.n - 1 .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms, unpack(ARGV, at, at + it.before - 1))
        at = at + it.before
      end
      if type(id) == 'string' and it.size > 0 then
        id = show('XADD', log, it.n .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms, unpack(ARGV, at, at + it.size - 1))
      elseif type(id) == 'string' then
        id = show('XADD', log, it.n .. '-0', 'v', '1', 'kind', 'checkpoint', 'at', ms,
          usual(at, owner, it.run, it.was, it.token, it.step, it.digest))
      end
      if type(id) == 'string' then
        done[#done + 1], ended[#ended + 1], jobs[#jobs + 1] = it, it.token, R .. 'job:' .. it.j
        if it.gone then steps[#steps + 1] = it.open end
        local members = wip[it.q] or {}
        wip[it.q], members[#members + 1], it.done = members, it.j .. ':' .. it.token, true
      else -- its log takes no such entry
        refused = id
        if it.leased then leases[it.leased], it.leased = false, nil end
      end
    end
    if #done == 0 then return refused end
    call('ZREM', S .. 'leases', unpack(ended))
    call('HDEL', S .. 'lease', unpack(ended))
    call('HDEL', S .. 'held:' .. owner, unpack(ended))
    for q, members in pairs(wip) do show('ZREM', R .. 'wip:' .. q, unpack(members)) end
    call('DEL', unpack(jobs))
    if #steps > 0 then call('UNLINK', unpack(steps)) end
    for q, count in pairs(looked) do
      if count > 0 then call('LPOP', R .. 'queue:' .. q, count) end
      by[q] = -count
    end
    for _, it in ipairs(done) do
      if it.job then
        call('HSET', R .. 'job:' .. it.job,
          'everstep', it.named, 'data', '["everstep.run_node",null,[],' .. it.named .. ']',
          'origin', it.queue, 'status', it.leased and 'started' or 'queued', 'timeout', 0 + it.timeout > 0 and math.ceil(it.timeout) or '-1',
          'created_at', date, 'enqueued_at', date, 'description', it.says,
          'result_ttl', '0', unpack(it.leased and begins or NONE))
        if it.leased then
          if it.queue ~= it.home then show('SADD', R .. 'queues', R .. 'queue:' .. it.queue) end
        else
          call('HSET', it.open, it.task, it.record)
          local ids = pushed[it.queue] or {}
          pushed[it.queue], ids[#ids + 1] = ids, it.job
        end
        call('HSET', it.key, 'n', it.n, 'digest', it.digest, 'step', it.step, 'updated', ms)
      else
        call('HSET', it.key, 'n', it.n, 'digest', it.digest, 'step', it.step, 'updated', ms, 'status', 'done',
          'width', '0', 'left', '0', 'jobs', '0')
        local word = show('HGET', S .. 'runs:' .. it.thread, it.run)
        if type(word) == 'string' then call('HSET', S .. 'runs:' .. it.thread, it.run, (string.gsub(word, '^%S+', 'done', 1))) end
        show('ZREM', S .. 'threads:running', it.thread)
        show('ZADD', S .. 'threads:done', ms, it.thread)
      end
    end
    for q, ids in pairs(pushed) do
      if call('RPUSH', R .. 'queue:' .. q, unpack(ids)) == #ids then show('SADD', R .. 'queues', R .. 'queue:' .. q) end
      by[q] = (by[q] or 0) + #ids
    end
    for q, count in pairs(by) do
      if count ~= 0 then show('HINCRBY', S .. 'counts', q, count) end
      for _ = 1, count do -- fewer slots were offered than jobs are left behind: those who wait hear of it
        local first = show('ZPOPMIN', S .. 'waiting:' .. q)
        if first.err or #first == 0 then break end
        show('RPUSH', S .. 'bell:' .. first[1], q)
        show('PEXPIRE', S .. 'bell:' .. first[1], 5000)
      end
    end
    local tills, names, held, begun = {}, {}, {}, {}
    for i = 1, #leases do
      local it, at = leases[i], #tills
      if it then
        if it.waited then call('HSET', it.waited, 'status', 'started', 'worker_name', owner, 'started_at', date) end
        call('HSET', it.open, it.task, it.record)
        tills[at + 1], tills[at + 2], names[at + 1], names[at + 2] = till, it.token, it.token, it.task .. ' ' .. it.thread
        held[at + 1], held[at + 2] = it.token, ms
        local members = begun[it.queue] or {}
        begun[it.queue], members[#members + 1], members[#members + 2] = members, wip_till, it.job .. ':' .. it.token
      end
    end
    if #tills > 0 then
      call('ZADD', S .. 'leases', unpack(tills))
      call('HSET', S .. 'lease', unpack(names))
      call('HSET', S .. 'held:' .. owner, unpack(held))
      for q, members in pairs(begun) do show('ZADD', R .. 'wip:' .. q, unpack(members)) end
    end
    if free > 0 and proc ~= '' then
      for i = 1, queues do show('ZADD', S .. 'waiting:' .. ARGV[10 + tokens + i], 'NX', ms, proc) end
    end
    for _, it in ipairs(all) do
      answer[#answer + 1] = it.leased and it.job or ''
      answer[#answer + 1] = it.leased or it.done and 0 or -1
    end
    return answer
  end
  if 0 + commits > 1 then
    answer = { ms .. ' ' .. ARGV[AT + 4], {} }
    for i = 1, commits do answer[2 * i + 1], answer[2 * i + 2] = '', -1 end
    return answer
  end

  local thread, n, digest, task, token, run, head_n, head_digest, head_step, next_task, next_node, next_queue, timeout, _, _, before,
    size = unpack(ARGV, AT, AT + 16)
  local Q = 10 + tokens
  if size == '0' then
    local said, at = { usual(AT + 17 + before, owner, run, task, token, head_step, head_digest) }, AT + 16 + before
    for i, value in ipairs(said) do ARGV[at + i] = value end
    size = #said
  end
  H = { rq = rq, thread = thread, n = 0 + n, digest = digest, task = task, token = token, owner = owner, salt = salt, lease_ms = 0 + lease_ms,
    proc = proc ~= '' and proc or nil, run = run, spare = spare, outcome = 'next', stop = '',
    head = { 0 + head_n, head_digest, 0 + head_step },
    next = next_task ~= '' and { { next_task, next_node, next_queue, 0 + timeout } } or {},
    entries = { { head_n .. '-0', 'checkpoint', 0 + size } }, tokens = Q > 10 and { unpack(ARGV, 11, Q) } or nil,
    queues = { unpack(ARGV, Q + 1, AT - 1) } }
  if 0 + before > 0 then table.insert(H.entries, 1, { head_n - 1 .. '-0', 'checkpoint', 0 + before }) end
  AT = AT + 17
end
