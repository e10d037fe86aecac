import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.util.Map;
import java.util.TreeMap;

/** The same writer by pgjdbc: Writer HOST:PORT,... SECONDS. */
public class Writer {
    public static void main(String[] words) throws Exception {
        String url = "jdbc:postgresql://" + words[0]
            + "/postgres?user=postgres&password=demo&targetServerType=primary&connectTimeout=2&loginTimeout=5&hostRecheckSeconds=1&socketTimeout=5";
        Map<String, Integer> told = new TreeMap<>();
        long last = System.nanoTime(), end = last + Long.parseLong(words[1]) * 1_000_000_000L, gap = 0;
        int key = 0;
        Connection session = null;
        while (System.nanoTime() < end) {
            key++;
            while (true) {
                long began = System.nanoTime();
                try {
                    if (session == null) {
                        session = DriverManager.getConnection(url);
                        session.setAutoCommit(false);
                    }
                    try (PreparedStatement insert = session.prepareStatement("INSERT INTO drivers VALUES ('pgjdbc', ?) ON CONFLICT DO NOTHING")) {
                        insert.setInt(1, key);
                        insert.execute();
                    }
                    session.commit();
                    break;
                } catch (SQLException error) {
                    // What takes long, and where.
                    if (System.nanoTime() - began > 500_000_000L) {
                        String what = session == null ? "a try to connect" : "a statement";
                        System.out.println("pgjdbc: " + what + " ended after " + (System.nanoTime() - began) / 1_000_000 + " ms: " + error.getMessage());
                    }
                    told.merge(session == null ? "connect" : String.valueOf(error.getSQLState()), 1, Integer::sum);
                    if (session != null) {
                        try {
                            session.close();
                        } catch (SQLException closed) {
                            // It is gone already.
                        }
                        session = null;
                    }
                    Thread.sleep(2);
                }
            }
            long now = System.nanoTime();
            // What the first connection takes is the program's own start.
            gap = key == 1 ? 0 : Math.max(gap, now - last);
            last = now;
            Thread.sleep(10);
        }
        System.out.println("pgjdbc: " + key + " acknowledged, longest pause " + gap / 1_000_000 + " ms, told " + told);
    }
}
