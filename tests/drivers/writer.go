// The same writer by pgx: writer HOST,... PORT,... SECONDS. Built with Debian's golang-github-jackc-pgx-v4-dev (tests/drivers/run.sh).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
)

func main() {
	url := fmt.Sprintf("host=%s port=%s user=postgres password=demo dbname=postgres target_session_attrs=read-write connect_timeout=2", os.Args[1], os.Args[2])
	seconds, _ := strconv.Atoi(os.Args[3])
	told := map[string]int{}
	last := time.Now()
	end := last.Add(time.Duration(seconds) * time.Second)
	var gap time.Duration
	var session *pgx.Conn
	key := 0
	for time.Now().Before(end) {
		key++
		for {
			err := write(&session, url, key)
			if err == nil {
				break
			}
			var server *pgconn.PgError
			switch {
			case session == nil:
				told["connect"]++
			case errors.As(err, &server):
				told[server.Code]++
			default:
				told["lost"]++
			}
			if session != nil {
				_ = session.Close(context.Background())
				session = nil
			}
			time.Sleep(2 * time.Millisecond)
		}
		now := time.Now()
		// What the first connection takes is the program's own start.
		if key > 1 && now.Sub(last) > gap {
			gap = now.Sub(last)
		}
		last = now
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Printf("pgx: %d acknowledged, longest pause %d ms, told %v\n", key, gap.Milliseconds(), told)
}

func write(session **pgx.Conn, url string, key int) error {
	// A server that vanished without a word is given up after that.
	bound, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if *session == nil {
		made, err := pgx.Connect(bound, url)
		if err != nil {
			return err
		}
		*session = made
	}
	transaction, err := (*session).Begin(bound)
	if err != nil {
		return err
	}
	if _, err = transaction.Exec(bound, "INSERT INTO drivers VALUES ('pgx', $1) ON CONFLICT DO NOTHING", key); err != nil {
		return err
	}
	return transaction.Commit(bound)
}
