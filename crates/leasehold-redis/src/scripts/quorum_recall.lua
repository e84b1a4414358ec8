-- What this node remembers. ARGV: what the node's own keys begin with, the name of this run, for how many ms it has been up.
-- Answers {mark or '', highest token, for how many ms it could have granted without having forgotten anything since, version: what an
-- attestation compares}.
--
-- A node without a mark may have been flushed at any time before now: it counts from when it was first asked. One with the
-- mark of an earlier run has restarted: it counts from its start.
local node, run, up = ARGV[1], ARGV[2], ARGV[3] + 0
local mark, highest = redis.call('GETEX', node .. 'mark') or '', redis.call('GETEX', node .. 'top') or '0'
local time = redis.call('TIME')
-- To the microsecond, so that no two are the same.
local now = time[1] * 1000 + time[2] / 1000
if string.find(mark, ':' .. run .. ':', 1, true) then
  return {mark, highest, up, mark .. '|' .. (redis.call('GETEX', node .. 'since') or '')}
end
local since = redis.call('GETEX', node .. 'since')
local known = since and string.sub(since, 1, #run + 1) == run .. ':' and tonumber(string.sub(since, #run + 2))
if not known then
  known = now
  if mark ~= '' then
    known = now - up
  end
  since = run .. ':' .. string.format('%.3f', known)
  redis.call('SET', node .. 'since', since)
end
return {mark, highest, math.max(now - known, 0), mark .. '|' .. since}
