-- Fencing tokens. Lua has numbers up to 2^53, which are exact.
local TOKEN_LIMIT = 2^53
local NO_TOKEN_LEFT = 'LEASETOKEN no token below 2^53 is left'

-- Returns a number as text with all its digits.
local function digits(number)
  return string.format('%.0f', number)
end

-- The counter of tokens, which all locks of a cluster slot share. Each exclusive token is above the
-- last one by EXCLUSIVE_STEP, so that the readers in between have one as well.
local EXCLUSIVE_STEP = 2

-- Returns the life of the counter in seconds: a day, or twice a TTL above 12 hours.
local function counter_life(ttl)
  return ttl + 0 > 43200000 and math.ceil(ttl / 500) or 86400
end

