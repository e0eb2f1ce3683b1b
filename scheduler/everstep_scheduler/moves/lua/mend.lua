-- mend: a log is written anew from its good entries, and takes the place of the old one. Only for whoever holds the recovery lock.
-- H: lock lock_ms(the lock is extended by it) thread salt
--    from, to: copy the entries from..to, a piece a call           or
--    seen(the last entry that was read) length count(good ones) n digest run status (what they say): take its place
-- An id behind a foreign one can't be given again in the same stream: not every server lets XSETID go back. So a new one.
-- Answers JSON: status = ok | lost (the lock) | moved (entries came, or the copy went: read on, begin anew)
--    next = where to go on copying, '' at the end; stray = 1: the thread's indexes said otherwise and are gone; more = 1: clean on
if call('GET', S .. 'recovery') ~= H.lock then return '{"status":"lost"}' end
local log, copy = S .. 'log:' .. H.thread, S .. 'mended:' .. H.thread
local COPY_MAX, PAGE, BYTES_MAX, KEPT_MS = 250, 10, 2097152, 600000
out.status = 'ok'

if H.from then
  local from, copied, bytes = H.from, 0, 0
  out.next = ''
  while from do
    local page = call('XRANGE', log, from, H.to, 'COUNT', PAGE)
    for _, entry in ipairs(page) do
      call('XADD', copy, entry[1], unpack(entry[2]))
      copied, from = copied + 1, '(' .. entry[1]
      for _, text in ipairs(entry[2]) do bytes = bytes + #text end
    end
    if #page < PAGE then from = nil
    elseif copied >= COPY_MAX or bytes > BYTES_MAX then
      out.next = from
      from = nil
    end
  end
  call('PEXPIRE', copy, KEPT_MS)
  call('PEXPIRE', S .. 'recovery', H.lock_ms)
  return cjson.encode(out)
end

call('PEXPIRE', S .. 'recovery', H.lock_ms)
if H.clean then
  clean_discards(MOVE_MAX)
else
  local last = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not last or last[1] ~= H.seen or call('XLEN', log) ~= H.length or call('XLEN', copy) ~= H.count then
    return '{"status":"moved"}'
  end
  call('PERSIST', copy)
  call('UNLINK', log)
  call('RENAME', copy, log)
  local T = load(H.thread)
  if not T or T.n ~= H.n or T.digest ~= H.digest or T.run ~= H.run or T.status ~= H.status then
    out.stray = 1
    if T then
      discard_step(H.thread, T)
      threads[H.thread] = nil
      call('ZREM', S .. 'threads:' .. T.status, H.thread)
    end
    call('UNLINK', S .. 'thread:' .. H.thread, S .. 'queued:' .. H.thread, S .. 'runs:' .. H.thread, S .. 'unmade:' .. H.thread)
  end
end
if call('EXISTS', S .. 'discards') == 1 then out.more = 1 end
return finish()
