-- KEYS: lease, fence. ARGV: holder, ttl in ms. Returns the new fence, or 0 while another holds it.
-- The same holder gets the same fence again: it asks twice when the first answer was lost.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return redis.call('INCR', KEYS[2])
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return tonumber(redis.call('GET', KEYS[2]))
end
return 0
