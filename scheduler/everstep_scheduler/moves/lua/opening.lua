-- Opening: what stands in `unmade:*` gets records and jobs, 250 tasks a call at most; the tasks of a new checkpoint.

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

-- For an inline caller: as many as it offers tokens for are leased. What a limit keeps waiting takes no token, so moves count, too.
local function make_own(thread, T)
  local tokens = H.tokens or {}
  make(thread, T, function() return T.status == 'running' and #tokens > 0 and moved < MOVE_MAX end,
    function(task, rec) if #tokens > 0 then gates.lease(thread, T, task, rec, tokens) else push(thread, T, task, rec) end end)
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
