use std::{
    fmt,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutPayload, PutResult, memory::InMemory,
};

use super::*;

/// A store whose downloads break off after `after` bytes, `breaks` times.
#[derive(Debug)]
struct Breaking {
    inner: InMemory,
    after: usize,
    breaks: AtomicUsize,
    /// Whether a broken download says so, or just ends.
    silent: bool,
    served: Arc<AtomicU64>,
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("breaking")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Breaking {
    async fn get_opts(
        &self,
        location: &Key,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        if options.head {
            return self.inner.get_opts(location, options).await;
        }
        let found = self.inner.get_opts(location, options).await?;
        let (meta, range, attributes) =
            (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let extensions = found.extensions.clone();
        let mut bytes = found.bytes().await?;
        let broken = self
            .breaks
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        let mut chunks = Vec::new();
        if broken {
            bytes.truncate(self.after);
        }
        self.served.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        chunks.push(Ok(bytes));
        if broken && !self.silent {
            chunks.push(Err(Error::Generic { store: "breaking", source: "reset".into() }));
        }
        let payload = GetResultPayload::Stream(futures::stream::iter(chunks).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn put_opts(
        &self,
        location: &Key,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Key,
        to: &Key,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

const KEY: &str = "submissions/7/miner/model.pt";

/// A remote store with one object of 1000 bytes, the bytes served so far, and its folder.
async fn breaking(
    after: usize,
    breaks: usize,
    silent: bool,
) -> (Remote, Arc<AtomicU64>, testkit::TempDir) {
    let folder = testkit::tempdir().unwrap();
    let (inner, served) = (InMemory::new(), Arc::<AtomicU64>::default());
    inner.put(&Key::from(KEY), content().into()).await.unwrap();
    let breaks = AtomicUsize::new(breaks);
    let objects = Breaking { inner, after, breaks, silent, served: Arc::clone(&served) };
    (Remote::open(Arc::new(objects), folder.path()).unwrap(), served, folder)
}

fn content() -> Vec<u8> {
    (0..1000u32).map(|n| (n % 251) as u8).collect()
}

fn staged(folder: &testkit::TempDir) -> usize {
    std::fs::read_dir(folder.path().join(STAGING)).unwrap().count()
}

#[tokio::test(start_paused = true)]
async fn a_download_that_breaks_again_and_again_goes_on_where_it_ended() {
    for silent in [false, true] {
        let (remote, served, folder) = breaking(150, 6, silent).await;
        let fetched = remote.file(&Key::from(KEY)).await.unwrap();
        assert_eq!(fetched.copied, 1000);
        assert!(std::fs::read(&fetched.path).unwrap() == content());
        assert_eq!(served.load(Ordering::SeqCst), 1000, "no byte came twice");
        assert_eq!(remote.file(&Key::from(KEY)).await.unwrap().copied, 0, "it is cached");
        assert_eq!(staged(&folder), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_that_brings_nothing_is_given_up_and_leaves_nothing() {
    let (remote, _, folder) = breaking(0, usize::MAX, false).await;
    let error = remote.file(&Key::from(KEY)).await.unwrap_err();
    assert!(matches!(&error, ArtifactError::Engine { reason, .. } if reason.contains("reset")));
    assert_eq!(staged(&folder), 0);
    assert!(!folder.path().join(KEY).exists());
}

#[tokio::test]
async fn a_copy_is_dropped_and_the_object_stays() {
    let (remote, _, _folder) = breaking(0, 0, false).await;
    let key = Key::from(KEY);
    let path = remote.file(&key).await.unwrap().path;
    for there in [true, false] {
        assert_eq!(remote.drop_copy(&key).await.unwrap(), there);
        assert!(!path.exists());
    }
    assert_eq!(remote.file(&key).await.unwrap().copied, 1000);
}
