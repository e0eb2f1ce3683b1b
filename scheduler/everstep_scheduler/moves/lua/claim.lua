-- claim: take work. Begins with a write that a full server allows, so that leases work there.
-- H: owner lease_ms tokens queues proc salt spare serves({'graph:node'...}, optional)
--    take = job id: one named job (RQ's own worker popped it)
--    thread = T: only tasks of this thread (inline); cursor: where to go on looking, from the last answer
-- Answers JSON: status = ok | rebuild | suspended; leases; refused; cursor (inline, '0' at the end)
--    children = threads that tasks of this one called (inline)
local living, suspended = alive()
if not living then return '{"status":"rebuild"}' end
call('DEL', S .. 'nothing')
out.status = 'ok'
if resent() then return finish() end
if suspended and not H.thread then return '{"status":"suspended"}' end
wake_due(WAKES_MAX)
gates.serve()

if H.take then
  accept(H.take, '', H.tokens[1])
elseif H.thread then
  local T = load(H.thread)
  if T and T.status == 'running' then
    local page = call('HSCAN', S .. 'open:' .. H.thread, H.cursor or '0', 'COUNT', 100)
    out.cursor = page[1]
    for i = 1, #page[2], 2 do
      local rec = sound(page[2][i + 1])
      if rec and rec.p == 'child' and rec.cl then
        out.children = out.children or {}
        out.children[#out.children + 1] = string.match(rec.cl, '^%S+ (.*)$')
      elseif rec and (rec.p == 'job' or rec.p == 'line' and gates.is_turn(rec.g)) and #H.tokens > 0 then
        leave(H.thread, T, page[2][i], rec, true)
        gates.lease(H.thread, T, page[2][i], rec, H.tokens)
      end
    end
    make_own(H.thread, T)
  end
  out.run_status = T and T.status
else
  local parked = H.serves and show('HKEYS', S .. 'parked') or {}
  if #parked > 0 then
    local serves, looked = {}, 0
    for _, name in ipairs(H.serves) do serves[name] = true end
    for _, name in ipairs(parked) do
      while serves[name] and #H.tokens > 0 and looked < MOVE_MAX do
        looked = looked + 1
        local member = show('LINDEX', S .. 'parked:' .. name, 0)
        if type(member) ~= 'string' then break end
        local thread, T, task, rec = at_place(member)
        if thread and rec.p == 'parked' and T.status == 'running' then
          unpark(thread, T, task, rec)
          gates.lease(thread, T, task, rec, H.tokens)
        else
          call('LPOP', S .. 'parked:' .. name)
          if call('HINCRBY', S .. 'parked', name, -1) <= 0 then call('HDEL', S .. 'parked', name) end
        end
      end
    end
  end
  refill()
  wait_for_work()
end
return finish()
