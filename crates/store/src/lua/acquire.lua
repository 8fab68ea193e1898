-- KEYS: lease, fence. ARGV: holder, ttl in ms. Returns the new fence, or 0 while another holds it.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return redis.call('INCR', KEYS[2])
end
return 0
