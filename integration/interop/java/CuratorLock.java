import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.TimeUnit;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.retry.ExponentialBackoffRetry;

/** Curator's locks, told line by line: see ../README.md. Arguments: servers, `mutex`, `read` or `write`, path. */
final class CuratorLock {
    private static void tell(String line) {
        System.out.println("peer> " + line);
    }

    private static InterProcessMutex lock(CuratorFramework client, String kind, String path) {
        return switch (kind) {
            case "mutex" -> new InterProcessMutex(client, path);
            case "read" -> new InterProcessReadWriteLock(client, path).readLock();
            case "write" -> new InterProcessReadWriteLock(client, path).writeLock();
            default -> throw new IllegalArgumentException("no such kind: " + kind);
        };
    }

    public static void main(String[] arguments) throws Exception {
        var client = CuratorFrameworkFactory.newClient(arguments[0], 10_000, 10_000, new ExponentialBackoffRetry(50, 5));
        client.start();
        client.blockUntilConnected();
        var lock = lock(client, arguments[1], arguments[2]);
        tell("ready");
        var orders = new BufferedReader(new InputStreamReader(System.in));
        for (String order = orders.readLine(); order != null; order = orders.readLine()) {
            switch (order) {
                case "lock" -> {
                    lock.acquire();
                    tell("held");
                }
                // Long enough for its own round trips: it queues, and leaves the queue again.
                case "try" -> tell(lock.acquire(300, TimeUnit.MILLISECONDS) ? "held" : "refused");
                case "release" -> {
                    lock.release();
                    tell("released");
                }
                default -> throw new IllegalArgumentException("no such order: " + order);
            }
        }
        client.close();
    }
}
