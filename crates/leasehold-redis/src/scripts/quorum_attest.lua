-- Marks this node as one that has forgotten nothing. ARGV: what the node's own keys begin with, the mark, the token that
-- all its next tokens exceed.
local node = ARGV[1]
local highest = redis.call('GETEX', node .. 'top')
if not highest or ARGV[3] + 0 > tonumber(highest) then
  redis.call('SET', node .. 'top', ARGV[3])
end
redis.call('SET', node .. 'mark', ARGV[2])
return redis.call('DEL', node .. 'since')
