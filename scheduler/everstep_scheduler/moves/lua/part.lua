-- part: a piece of what the coming commit will name: a Send chunk, a piece of a snapshot. Means nothing until named.
-- Or an effect (`effect_done`): it counts at once, for this task. Its record keeps the id of the first one.
-- H: thread n digest task token entries
-- Answers JSON: status = ok | fenced | rebuild; ids
if not alive() then return '{"status":"rebuild"}' end
local _, rec, holds = attempt()
if not holds then return '{"status":"fenced"}' end
local ids = append(H.thread)
if not rec.e and H.entries[1][2] == 'effect_done' then
  rec.e = ids[1]
  keep(H.thread, H.task, rec)
end
return cjson.encode({ status = 'ok', ids = ids })
