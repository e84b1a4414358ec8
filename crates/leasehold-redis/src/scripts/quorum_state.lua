-- Reads the state of this node. ARGV: the prefix of the node's keys, a random name for a run that
-- was not watched before, and what the client read last: the version, the ms for which the run had
-- been watched, and the ms since ('' and 0: nothing). Returns {the run, the marker or '', the
-- highest token, the ms for which the run has been watched, the version that an attestation
-- compares, the wall clock in ms}.
--
-- `since` is run:name:ms. The ms are the sum of the times that clients have measured one after the
-- other, because the clock of this server may be set. A time is added only if no other was added
-- since it started. If the node was wiped, `since` is gone as well.
local node, name, version, before, watched = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] + 0
local run, time = run_of_server(), redis.call('TIME')
local mark, highest = redis.call('GETEX', node .. 'mark') or '', redis.call('GETEX', node .. 'top') or '0'
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local stored = redis.call('GETEX', node .. 'since') or ''
local first, of, ms = string.match(stored, '^((.-):%w+):(%d+)$')
if run == '' or string.find(mark, ':' .. run .. ':', 1, true) then
  return {run, mark, highest, 0, mark .. '|' .. (first or ''), now}
end
if of ~= run then
  first, ms = run .. ':' .. name, '0'
  redis.call('SET', node .. 'since', first .. ':0')
elseif version == mark .. '|' .. first and before == ms and watched > 0 then
  ms = string.format('%.0f', ms + watched)
  redis.call('SET', node .. 'since', first .. ':' .. ms)
end
return {run, mark, highest, ms + 0, mark .. '|' .. first, now}
